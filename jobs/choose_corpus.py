"""Choose for every prompt of a corpus the best of its continuations.

ray job submit -- python jobs/choose_corpus.py --input corpus/ --output chosen/ --model checkpoint/
"""

import sys

from jobs.command_line import main

if __name__ == "__main__":
    sys.exit(main(__doc__, task="multiple-choice"))
