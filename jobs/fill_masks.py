"""Find words for every [MASK] of a corpus, or score how likely its texts are.

ray job submit -- python jobs/fill_masks.py --input corpus/ --output filled/ --model checkpoint/
"""

import sys

from jobs.command_line import main

if __name__ == "__main__":
    sys.exit(main(__doc__, task="fill-mask"))
