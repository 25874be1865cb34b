"""The command line: one module per verb, which only parses, calls the library and prints."""
