"""What a method is composed of: functions of tensors that know neither device, trainer nor files."""
