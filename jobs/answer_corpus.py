"""Answer the question of every record from its context.

ray job submit -- python jobs/answer_corpus.py --input corpus/ --output answered/ --model checkpoint/
"""

import sys

from jobs.command_line import main

if __name__ == "__main__":
    sys.exit(main(__doc__, task="question-answering"))
