"""What can be wrong in the class of a method, said when the class or the run is made and not 40 % into it."""

import ast
import functools
import inspect
import textwrap
from collections.abc import Iterator, Sequence
from types import CodeType, FunctionType, UnionType

# Names of earlier versions: what a class outside of this package may still define, and what it may still call.
RENAMED_TO_DEFINE = {
    "views": "VIEWS",
    "step_cost": "STEP_COST",
    "changes_supervised_term": "CHANGES_SUPERVISED_TERM",
    "name_of_inference_network": "FIRST_NETWORK or inference_network",
    "stateful_parts": "build_state",
    "network_for_inference": "inference_network",
    "other_networks": "build_other_networks and build_teachers",
    "trained_networks": "build_other_networks",
}
RENAMED = RENAMED_TO_DEFINE | {
    "student": "forward_pass(image).logits",
    "student_outputs": "forward_pass(image).outputs",
    "finest_outputs": "forward_pass(image).outputs[:count]",
    "student_probabilities": "network_probabilities",
    "observe_teaching": "observe_pseudo_labels",
    "progress_after_warmup": "progress_of_main",
    "in_warmup": "warmup_losses, which a warm-up's steps take their losses from",
    "teacher": 'networks["teacher"]',
    "second_network": 'the name "second"',
    "transform_features": "encode and decode",
    "network_in_place": "networks.in_place",
}


def refuse_renamed(trainer: type, base: type) -> None:
    """Raise a TypeError if a class, or one that it mixes in, defines what has another name now."""
    for cls in set(trainer.__mro__) - set(base.__mro__):
        for name in vars(cls).keys() & RENAMED_TO_DEFINE.keys():
            raise TypeError(f"{cls.__name__}.{name} is called {RENAMED[name]} now: see CHANGELOG.md")


def refuse_configuration(trainer: type, configuration: str, patch_size: Sequence[int], is_cascaded: bool) -> None:
    """Raise a NotImplementedError for a cascade, and for patches of dimensions that are not the class's DIMENSIONS."""
    if is_cascaded:
        raise NotImplementedError(
            f"configuration {configuration} is the second stage of a cascade, which semi-supervised training does not "
            "support: train 3d_fullres or 2d"
        )
    if len(patch_size) not in trainer.DIMENSIONS:
        allowed = " or ".join(f"{dimensions}-D" for dimensions in trainer.DIMENSIONS)
        raise NotImplementedError(
            f"{trainer.__name__} is for {allowed} patches, and those of configuration {configuration} are "
            f"{len(patch_size)}-D"
        )


def refuse_missing_losses(trainer: type, api: type, pretrain_fraction: float) -> None:
    """Raise a NotImplementedError if a class lacks the losses of a stage that its run has."""
    needed = {"training_losses": 1.0, "pretraining_losses": pretrain_fraction}
    for name, share in needed.items():
        if share and getattr(trainer, name) is getattr(api, name):
            what = "does not say what its losses are" if name == "training_losses" else "has a pretrain_fraction"
            raise NotImplementedError(f"{trainer.__name__} {what}: write {name}")


def refuse_missing_attributes(trainer: object, base: type, api: type) -> None:
    """Raise an AttributeError if a method uses an attribute of itself that there is not.

    What its functions use is read from their source, and what those functions of the API use that they call: `ramp`
    needs `rampup_duration`. What some function of a class assigns, or names in a string, counts as there.

    Args:
        trainer: of a class that derives from `base`, initialised.
        base: the class that all trainers derive from.
        api: the class whose functions a method calls.
    """
    cls = type(trainer)
    own = [one for one in cls.__mro__ if one not in base.__mro__]
    pending = [function for one in own for member in vars(one).values() for function in _functions_of(member)]
    known = {*vars(trainer), *_assigned_by(base), *(name for one in pending for name in _assigned_in(one))}
    while pending:
        function = pending.pop()
        for name in {*_attributes_of_self(function, ast.Load)} - known:
            known.add(name)
            if not hasattr(cls, name):
                now = f", which is {RENAMED[name]} now" if name in RENAMED else ""
                raise AttributeError(
                    f"{cls.__name__} has no attribute {name}{now}: {function.__qualname__} uses it. Write it as a "
                    "class attribute, or look for a slip of the pen"
                )
            if inspect.getattr_static(cls, name) is vars(api).get(name):
                pending += _functions_of(vars(api)[name])


def _functions_of(member: object) -> list[FunctionType]:
    """Return the functions behind a member of a class: a method, decorated or not, or a property."""
    if isinstance(member, property):
        return [function for function in (member.fget, member.fset) if function is not None]
    member = member.func if isinstance(member, functools.cached_property) else member
    return [inspect.unwrap(member)] if isinstance(member, FunctionType) else []


@functools.cache
def _assigned_by(base: type) -> frozenset[str]:
    """Return what the functions of a class and of those that it derives from assign to themselves."""
    members = (member for one in base.__mro__[:-1] for member in vars(one).values())
    functions = (function for member in members for function in _functions_of(member))
    return frozenset(name for function in functions for name in _attributes_of_self(function, ast.Store))


def _assigned_in(function: FunctionType) -> set[str]:
    """Return what a function assigns to its object, or may assign by a name in a string."""
    words = {constant for constant in _constants_of(function.__code__) if isinstance(constant, str)}
    return {*_attributes_of_self(function, ast.Store), *words}


def _attributes_of_self(function: FunctionType, context: type[ast.expr_context]) -> Iterator[str]:
    """Yield the names that a function reads (ast.Load) or sets (ast.Store) of its first argument."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):  # written at a prompt: there is no source to read
        return
    compiled = {name for code in _codes_of(function.__code__) for name in code.co_names}  # the file may be edited since
    first = function.__code__.co_varnames[:1]
    kinds = ast.FunctionDef if function.__name__ == "<lambda>" else ast.FunctionDef | ast.Lambda
    for node in _without_inner_scopes(tree, first, kinds):
        is_attribute = isinstance(node, ast.Attribute) and isinstance(node.ctx, context)
        if is_attribute and isinstance(node.value, ast.Name) and node.value.id in first and node.attr in compiled:
            yield node.attr


def _without_inner_scopes(tree: ast.AST, first: tuple[str, ...], kinds: type | UnionType) -> Iterator[ast.AST]:
    """Yield the nodes of a tree, but not those of classes, and of functions that have an argument of the same name."""
    pending = [tree]
    while pending:
        node = pending.pop()
        yield node
        for child in ast.iter_child_nodes(node):
            is_inner = isinstance(child, kinds) and not isinstance(node, ast.Module)
            rebinds = is_inner and {one.arg for one in child.args.args} & {*first}
            if not (isinstance(child, ast.ClassDef) or rebinds):
                pending.append(child)


def _codes_of(code: CodeType) -> Iterator[CodeType]:
    """Yield a function's code and that of the functions inside of it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes_of(constant)


def _constants_of(code: CodeType) -> Iterator[object]:
    return (constant for one in _codes_of(code) for constant in one.co_consts)
