"""Published methods, one file per method and one folder per family; only the registry imports this, as `dd.methods`."""

if __name__ != "dd.methods":
    raise ImportError(
        f"this folder is the package dd.methods; importing it as {__name__!r} would register methods twice"
    )
