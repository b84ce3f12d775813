"""What can be wrong in the class of a method, said when the class or the run is made and not 40 % into it."""

import ast
import functools
import inspect
import textwrap
from collections.abc import Iterator, Sequence
from types import CodeType, FunctionType, UnionType

from nnunet_ssl.training.plain_values import plain_values

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
LOSSES_OF_UNLABELED = ("training_losses", "pretraining_losses")
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


def refuse_configuration(trainer: type, configuration: str, patch_size: Sequence[int]) -> None:
    """Raise a NotImplementedError for patches of dimensions that are not the class's DIMENSIONS."""
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


def refuse_slips(trainer: object, base: type, api: type, views: Sequence[str]) -> None:
    """Raise an AttributeError if a method uses an attribute, a view, a part or a state that there is not.

    Args:
        trainer: of a class that derives from `base`, initialised.
        base: the class that all trainers derive from.
        api: the class whose functions a method calls.
        views: all that an unlabeled batch may have.

    Raises:
        TypeError: a state holds what no checkpoint can.
    """
    refuse_missing_attributes(trainer, base, api)
    refuse_missing_views(trainer, base, views)
    refuse_missing_entries(trainer, base, api)
    for name, kept in trainer.state.items():
        plain_values(kept.state_dict(), f"{type(trainer).__name__}: state {name!r}")


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
    pending = _own_functions(cls, base)
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


def refuse_missing_views(trainer: object, base: type, views: Sequence[str]) -> None:
    """Raise an AttributeError if a method reads a view of an unlabeled batch that its VIEWS does not ask for.

    What is compared with None somewhere in the same function may be missing.

    Args:
        trainer: of a class that derives from `base`, initialised.
        base: the class that all trainers derive from.
        views: all that there may be.
    """
    for function in _own_functions(type(trainer), base):
        arguments = function.__code__.co_varnames[: function.__code__.co_argcount]
        batch = arguments[2] if function.__name__ in LOSSES_OF_UNLABELED and len(arguments) > 2 else "unlabeled"
        nodes = list(_nodes_of(function, (batch,))) if batch in arguments else []
        if any(isinstance(node, ast.Name) and node.id == batch and isinstance(node.ctx, ast.Store) for node in nodes):
            continue  # it is another batch by then
        compared = {_attribute_of(node.left, batch) for node in nodes if isinstance(node, ast.Compare)}
        for view in sorted({_attribute_of(node, batch) for node in nodes} - compared - {*trainer.VIEWS, None}):
            if view in views:
                written = ", ".join(f'"{name}"' for name in views if name in (*trainer.VIEWS, view))
                raise AttributeError(
                    f"{function.__qualname__} reads {batch}.{view}, which VIEWS of {type(trainer).__name__} does not "
                    f"ask for: write VIEWS = ({written})"
                )


def refuse_missing_entries(trainer: object, base: type, api: type) -> None:
    """Raise an AttributeError if a method uses self.parts["x"] or self.state["x"] and no x is made.

    What `build_parts` or `build_state` names in a string, or some function sets, may be made with other options.

    Args:
        trainer: of a class that derives from `base`, initialised.
        base: the class that all trainers derive from.
        api: the class whose functions a method calls.
    """
    cls = type(trainer)
    functions = _own_functions(cls, base)
    for store in ("parts", "state"):
        made, build = getattr(trainer, store), f"build_{store}"
        if not made and getattr(cls, build) is not getattr(api, build):
            continue  # the options of this run leave all of it out
        known = {*made, *(name for one in functions for name in _entries_of_self(one, store, ast.Store))}
        builders = [one for owner in cls.__mro__ for one in _functions_of(vars(owner).get(build))]
        known |= {constant for one in builders for constant in _constants_of(one.__code__)}
        for function in functions:
            for name in _entries_of_self(function, store, ast.Load):
                if name not in known:
                    there_is = f"it makes {', '.join(made)}" if made else f"write {build}"
                    raise AttributeError(
                        f'{function.__qualname__} uses self.{store}["{name}"], which {build} of {cls.__name__} does '
                        f"not make: {there_is}"
                    )


def _own_functions(cls: type, base: type) -> list[FunctionType]:
    """Return the functions of a class and of those that it derives from, without those of the base."""
    own = [one for one in cls.__mro__ if one not in base.__mro__]
    return [function for one in own for member in vars(one).values() for function in _functions_of(member)]


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
    first = function.__code__.co_varnames[:1]
    for node in _nodes_of(function, first):
        name = _attribute_of(node, *first)
        if name is not None and isinstance(node.ctx, context):
            yield name


def _entries_of_self(function: FunctionType, store: str, context: type[ast.expr_context]) -> Iterator[str]:
    """Yield each "x" for which a function reads or sets self.store["x"], but not where it asks if there is one."""
    first, constants = function.__code__.co_varnames[:1], {*_constants_of(function.__code__)}
    nodes = list(_nodes_of(function, first))
    asked = {ast.dump(node.left) for node in nodes if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.In)}
    for node in nodes:
        if not (isinstance(node, ast.Subscript) and isinstance(node.ctx, context)):
            continue
        is_named = _attribute_of(node.value, *first) == store and isinstance(node.slice, ast.Constant)
        if is_named and node.slice.value in constants and ast.dump(node.slice) not in asked:
            yield node.slice.value


def _attribute_of(node: ast.AST, name: str = "") -> str | None:
    """Return x of name.x; None for any other node."""
    is_attribute = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    return node.attr if is_attribute and node.value.id == name else None


def _nodes_of(function: FunctionType, names: tuple[str, ...]) -> Iterator[ast.AST]:
    """Yield the nodes of a function's source where names mean its arguments, without attributes of other code."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):  # written at a prompt: there is no source to read
        return
    compiled = {name for code in _codes_of(function.__code__) for name in code.co_names}  # the file may be edited since
    kinds = ast.FunctionDef if function.__name__ == "<lambda>" else ast.FunctionDef | ast.Lambda
    for node in _without_inner_scopes(tree, names, kinds):
        if not isinstance(node, ast.Attribute) or node.attr in compiled:
            yield node


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
