"""One file = one class = one `-tr` name = one paper."""
