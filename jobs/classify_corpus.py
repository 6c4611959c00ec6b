"""Label every text of a corpus, or pair of texts, with sequence classifiers.

ray job submit -- python jobs/classify_corpus.py --input corpus/ --output labelled/ --model checkpoint/
"""

import sys

from jobs.command_line import main

if __name__ == "__main__":
    sys.exit(main(__doc__, task="text-classification"))
