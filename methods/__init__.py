"""Published methods, one per file, one folder per family; imported as `dd.methods` and only by the registry."""

if __name__ != "dd.methods":
    raise ImportError(
        f"this folder is the package dd.methods; importing it as {__name__!r} would register methods twice"
    )
