"""What downloaded files are known by.   in: the name of a file   out: SHA-256, or git's name for it
who calls: download.py   (imports no torch)

Of the files as they lie in karpathy/nanochat's eval_bundle.zip, not packed, and of the words.
Where only the name that git gives a content is known, that is compared: a SHA-1 over its length and
itself.  coqa is missing here, since nobody has stated its sum: what was loaded is compared with the
zip's own checksum, and every result carries the SHA-256 of what it read.
"""

import hashlib
from collections.abc import Mapping

__all__ = ["KNOWN_BLOBS", "KNOWN_SHA256", "FileSum"]

_CORE = """
9ffd73480b51746c11627e56239f8b87035eb255cb92c3a58fd64e2e4b65fb56 agi_eval_lsat_ar
1ae3aeedf1951d881cbd5c2e3a31e78a1993d251479afbe4cb413b6707244636 arc_challenge
d2d12e59543acf9a5ef6079634a72b30215e36c2fd4236fff3bc855d287b87f5 arc_easy
8485683a8c7e7e6c9fc6ca3cc81140fd85edb27f34406a6736d1539cf7ebcb3a bigbench_cs_algorithms
106ba9ac7507c7ab385c5e59c49cd57aa83025abf080d9b2a2661c0d6c6dbcc5 bigbench_dyck_languages
80c98d8e7ab8213513d1643886229c05c40a6837353b07c19ac7bd860668954e bigbench_language_identification
41e2964ad619c49edd97c22b2c50f922a0241255d906a754bf81a20f4f66b85f bigbench_operators
bb0d22727cb25beffb022c8e8c0c3e1159c8b3c7bd7284603c0d6491f8616265 bigbench_qa_wikidata
8febd2c0080a15680cd17f92bfa30d87abcfac021e646e55d0b8ad69f0cfa767 bigbench_repeat_copy_logic
454ff101e614370bb1807fe7ebbda6fdb57e794b9662cc1ccae211bf1ff626c8 boolq
2771f63f8127c0725b1f6b0ef2cd2ef6469168ae5875fc8d276b25b4f32c8c1a commonsense_qa
595dca44dec54c849490bd403a3e24a29e3b944065783222ebb0eb1a55298846 copa
187e7f270a440c63d6cf11a57459fdc7e0bce889338225e42cc88e24ee13d52e jeopardy_all
411bfbe5b9054346b6a19299c0242670adbefb9162efd958593cbc0290b8c9dc lambada_openai
adb2e5c7f8db810ddad4d6b2bf53dcc86dcc545499f7aafcaf42a8e179476c09 openbook_qa
d2870e73aec5154df3faf259b7700876e11608eebdf69e9d6667435673dbe4e0 piqa
41fe6c43e725c0dc9161465066932c46edc390bf4019c361c500bbc4b766a350 squad
746336c27cd2e39a554cb1b8b4869d0f1ae2577ac5bfe799842d26bca5a5bf5e winograd_wsc
ea1592526f3bfdd0948ed3acb1b4dfa3f83d23698917118688ee1df7f8d4b8d7 winogrande
"""

KNOWN_SHA256: Mapping[str, str] = {
    f"{name}.jsonl": digest for digest, name in (line.split() for line in _CORE.split("\n") if line)
}
"""By the file's own name; the folders of the bundle share none."""

KNOWN_BLOBS: Mapping[str, str] = {
    "hellaswag.jsonl": "448321079fdc140bd8566b16b24eda9ceacd3501",
    "words_alpha.txt": "d3a119e7ce57d068c3f3c9cbd694fc2ff14571ab",  # at the commit of WORDS_URL
}
"""By the file's own name: what git calls this content."""


class FileSum:
    """The sum a file is known by, of pieces as they come."""

    def __init__(self, name: str, num_bytes: int) -> None:
        self._known = KNOWN_SHA256.get(name) or KNOWN_BLOBS.get(name)
        self._digest = hashlib.sha256()
        if name in KNOWN_BLOBS:
            self._digest = hashlib.sha1(b"blob %d\0" % num_bytes, usedforsecurity=False)

    def update(self, piece: bytes) -> None:
        """The next piece of the file."""
        self._digest.update(piece)

    @property
    def is_other(self) -> bool:
        """Whether the file is known, and this is another one."""
        return self._known is not None and self._digest.hexdigest() != self._known
