"""The licence of data whose publisher names none."""

NOT_STATED = "not stated"
