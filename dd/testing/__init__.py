"""The conformance suite that every method must pass, built in or plug-in.

From a shell, for methods by name or by file; without `--method`, for all registered methods:

    python -m dd.testing --method my_idea --method path/to/other.py
    pytest --pyargs dd.testing --method my_idea

From your own tests:

    from dd.testing import conformance

    def test_conforms():
        conformance.check(MyIdea)
"""
