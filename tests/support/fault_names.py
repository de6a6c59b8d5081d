"""Environment variables by which a test plants faults in ranks."""

FAULT = "SPLITRANK_TEST_FAULT"  # which one; the module of the ranks knows them
RANK = "SPLITRANK_TEST_RANK"  # that module, for the command of ``faulty_splitrank``
