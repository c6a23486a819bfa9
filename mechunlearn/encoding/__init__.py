"""Facts and text as tensors."""

from mechunlearn.encoding.batch import GROUPS as GROUPS
from mechunlearn.encoding.batch import IGNORED as IGNORED
from mechunlearn.encoding.batch import Batch as Batch
from mechunlearn.encoding.batch import token_groups as token_groups
from mechunlearn.encoding.encoder import Speaks as Speaks
from mechunlearn.encoding.encoder import encode as encode
from mechunlearn.encoding.encoder import encode_text as encode_text
from mechunlearn.encoding.encoder import joined as joined

__all__ = [
    "GROUPS",
    "IGNORED",
    "Batch",
    "Speaks",
    "encode",
    "encode_text",
    "joined",
    "token_groups",
]
