"""What Python imports when it starts (`site`): here, with a run of the command line, the watch over what it runs.

The folder is put into PYTHONPATH by `tests/conftest.py`, so that this holds for every `sap` that a test starts, by
whatever shell or process.
"""

import os
import sys

if "SAP_TEST_VIOLATIONS" in os.environ:
    # "-m sapcli", or the console script.
    words = sys.orig_argv
    place = next((number for number, word in enumerate(words[1:4], 1) if word in ("sapcli", "-msapcli")), 0)
    place = place or next((number for number, word in enumerate(words[:3]) if word.endswith("/sap")), 0)
    if place:
        tests = __file__.removesuffix("/support/start/sitecustomize.py")
        sys.path.append(tests)
        from support.no_code import begin

        sys.path.remove(tests)
        begin(words[place + 1 :])
