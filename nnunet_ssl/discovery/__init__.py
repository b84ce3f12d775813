"""How `nnUNetv2_train -tr NAME` finds the trainers of this package."""
