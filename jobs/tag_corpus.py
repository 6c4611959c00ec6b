"""Find entities in every text of a corpus, or label its words, with token classifiers.

ray job submit -- python jobs/tag_corpus.py --input corpus/ --output tagged/ --model checkpoint/
"""

import sys

from jobs.command_line import main

if __name__ == "__main__":
    sys.exit(main(__doc__, task="token-classification"))
