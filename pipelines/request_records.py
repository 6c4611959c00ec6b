"""Records of requests in, about how many tokens they are, and then the model's input out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from convbert import ConvBertTokenizer
from pipelines.encode import Encoded, Encoding, encode_records, loaded_tokenizer
from pipelines.jsonl import is_unicode
from pipelines.values import Reasons, checked_lists, checked_texts, joined

LEAST_NEW = 8  # a window of a pair adds this part of its length at least to the one before
Record = Mapping[str, Any]


def estimated_tokens(record: Record, encoding: Encoding, tokenizer: ConvBertTokenizer) -> int:
    """About how many tokens a record becomes, all windows or choices together: at least a quarter of the true number.

    A word piece is taken to be some four letters, or one character of Chinese. Only a first text that stands in every
    window of a second is really tokenised.
    """
    first, *others = (_n_pieces(record.get(name)) for name in encoding.inputs.columns)
    second = others[0] if others else []
    n_first = max(first, default=0)
    if others and encoding.long_text == "window":
        n_first = _n_counted(record.get(encoding.inputs.columns[0]), encoding, tokenizer) or n_first
    n_tokens = 2 + n_first + (1 + max(second, default=0) if others else 0)
    if encoding.long_text != "window":
        n_tokens = min(n_tokens, encoding.max_length)
    elif n_tokens > encoding.max_length:
        n_new = encoding.max_length - encoding.stride - (3 + n_first if others else 2)
        n_tokens = n_tokens * encoding.max_length // max(n_new, encoding.max_length // LEAST_NEW, 1)
    return n_tokens * (len(second) if encoding.inputs.kind == "choices" else 1)


def _n_counted(text: Any, encoding: Encoding, tokenizer: ConvBertTokenizer) -> int | None:
    """Word pieces of a text that may stand in a window beside another; None where it is none, or has too many letters.

    With four of those to a piece it leaves the window no room, which is the most that a record is estimated to take.
    """
    if not isinstance(text, str) or len(text) > 4 * encoding.max_length or not is_unicode(text):
        return None
    return len(tokenizer.encode_batch([text]).input_ids[0]) - tokenizer.num_special_tokens_to_add()


def _n_pieces(value: Any) -> list[int]:
    """About how many word pieces a text has, or each of a list of texts: more where a character has several bytes."""
    texts = [text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)]
    return [(2 * len(text.encode(errors="surrogatepass")) - len(text)) // 4 for text in texts]


def checked_values(records: Sequence[Record], encoding: Encoding) -> tuple[list[list[Any]], Reasons]:
    """A list of values for each column that is read, and for each record that cannot be encoded the reason why."""
    values: list[list[Any]] = []
    reasons = []
    for name in encoding.inputs.columns:
        check = checked_lists if name in encoding.inputs.lists else checked_texts
        column, why = check([record.get(name) for record in records], name)
        values.append(list(column))
        reasons.append(why)
    return values, joined(reasons)


def encode_values(values: Sequence[list[Any]], encoding: Encoding) -> Encoded:
    """Records as tokenising makes them in a job, and a reason where a job would make any number of windows."""
    crowded = _crowded(*values, encoding=encoding) if encoding.long_text == "window" and len(values) == 2 else {}
    if not crowded:
        return encode_records(values, encoding)
    left = [record for record in range(len(values[0])) if record not in crowded]
    encoded = encode_records([[column[record] for record in left] for column in values], encoding)
    reasons = crowded | dict(zip(left, encoded.reasons, strict=True))
    records = [left[place] for place in encoded.records]
    return Encoded(encoded.sequences, records, [reasons[record] for record in range(len(values[0]))])


def _crowded(firsts: list[str], seconds: list[str], *, encoding: Encoding) -> dict[int, str | None]:
    """Records whose first text would leave a long second one so little room that it became any number of windows."""
    tokenizer = loaded_tokenizer(encoding.tokenizer, encoding.fingerprint)
    first, second = encoding.inputs.columns
    room = encoding.max_length - encoding.stride - encoding.max_length // LEAST_NEW - 1  # for its last special token
    lengths = [len(ids) for ids in tokenizer.encode_batch(firsts).input_ids]
    long = [record for record, length in enumerate(lengths) if length > room]
    pairs = tokenizer.encode_batch([firsts[record] for record in long], [seconds[record] for record in long]).input_ids
    return {
        record: f"{first} has {lengths[record]} tokens, above the limit of {room} beside a long {second}: shorten it"
        for record, ids in zip(long, pairs, strict=True)
        if len(ids) > encoding.max_length
    }
