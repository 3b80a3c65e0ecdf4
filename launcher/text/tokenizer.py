"""A model folder's tokenizer, with the rules by which Transformers 5 loads one.

Transformers 5 does not always run tokenizer.json as it is: for LlamaTokenizer (of Llama models) and for
Qwen2Tokenizer it takes vocabulary, merges and post-processor from the file and puts the class's own
normaliser and pre-tokenizer around them. Ids must equal those of a trainer that runs on it, so the same is
done here, and said in the audit.
"""

import hashlib
import json
import os

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from text.errors import BadInput
from text.template import ChatTemplate

NAMED = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"]

QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CLASS_DEFAULTS = {
    "LlamaTokenizer": {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"},
    "Qwen2Tokenizer": {
        "unk_token": "<|endoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    },
}

# Classes that Transformers 5 runs on tokenizer.json alone.
PLAIN = {"", "PreTrainedTokenizer", "TokenizersBackend", "PythonBackend"}


def read_text(path):
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except OSError as error:
        raise BadInput(
            f"{path}: cannot be read ({error.strerror}); give the folder of a complete model."
        ) from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: is not UTF-8 text (byte {error.start}); fetch the file again.") from error


def single_keys(pairs):
    """Two values for one key: nobody can say which one was meant."""
    keys = [key for key, _ in pairs]
    if len(set(keys)) != len(keys):
        raise ValueError(f"key '{next(key for key in keys if keys.count(key) > 1)}' stands twice in one object")
    return dict(pairs)


def read_object(path, optional=False):
    if optional and not os.path.exists(path):
        return {}
    try:
        value = json.loads(read_text(path), object_pairs_hook=single_keys)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}: is not valid JSON ({error}); fetch the file again.") from error
    if not isinstance(value, dict):
        raise BadInput(f"{path}: must hold a JSON object; fetch the file again.")
    return value


def choose_class(model_type, declared, file_text):
    """The tokenizer class Transformers 5 would run, or "" for tokenizer.json as it is."""
    name = (declared or "").removesuffix("Fast")
    if model_type == "qwen2":
        return "Qwen2Tokenizer"
    if model_type == "mistral":
        return ""
    if name == "LlamaTokenizer" and '"ByteLevel"' in file_text:
        return ""
    return name


def added_token(value):
    if isinstance(value, dict):
        known = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
        return AddedToken(**{key: value[key] for key in known if key in value})
    return value


def gather_tokens(folder, settings, file_json):
    """Adds special_tokens_map.json to `settings` where it counts; returns the added tokens {id: AddedToken}."""
    if "added_tokens_decoder" in settings:
        return {int(index): added_token(token) for index, token in settings["added_tokens_decoder"].items()}
    for key, value in read_object(os.path.join(folder, "special_tokens_map.json"), optional=True).items():
        if key == "additional_special_tokens":
            key = "extra_special_tokens"
        settings[key] = (
            {**value, "special": True} if isinstance(value, dict) and "content" in value else value
        )
    added = {}
    for token, index in read_object(os.path.join(folder, "added_tokens.json"), optional=True).items():
        added[index] = AddedToken(token, normalized=True)
    for token in file_json.get("added_tokens", []):
        added[token["id"]] = added_token(token)
    return added


def gather_named(settings, added, class_name):
    """{name: token} of bos_token and its like, in Transformers' order, custom *_token names after them."""
    values = {**CLASS_DEFAULTS.get(class_name, {}), **settings}
    names = list(NAMED)
    for key, value in settings.items():
        if key.endswith("_token") and key not in names and isinstance(value, str):
            names.append(key)
    if isinstance(settings.get("extra_special_tokens"), dict):
        values.update(settings["extra_special_tokens"])
        names += [key for key in settings["extra_special_tokens"] if key not in names]
    known = {token.content: token for token in added.values()}
    named = {}
    for name in names:
        value = added_token(values.get(name))
        if value is not None:
            content = value if isinstance(value, str) else value.content
            named[name] = known.get(content, value)
    return named


def rebuild(class_name, file_json, post_processor, settings):
    model = file_json["model"]
    vocabulary = model["vocab"]
    merges = [
        tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]
    ]
    prefix = settings.get("add_prefix_space")
    if class_name == "LlamaTokenizer":
        tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=merges, fuse_unk=True, byte_fallback=True))
        scheme = "always" if settings.get("legacy", False) else "first"
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
            prepend_scheme="never" if prefix is False else scheme, split=False
        )
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        )
    else:
        tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=merges))
        tokenizer.normalizer = normalizers.NFC()
        words = pre_tokenizers.Split(Regex(QWEN_WORDS), behavior="isolated")
        letters = pre_tokenizers.ByteLevel(add_prefix_space=bool(prefix), use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, letters])
        tokenizer.decoder = decoders.ByteLevel()
    if post_processor is not None:
        tokenizer.post_processor = post_processor
    return tokenizer


def register(tokenizer, added, named, extra):
    """Makes the tokenizer know every added and special token, without changing the ids of those it has."""
    present = tokenizer.get_added_tokens_decoder().values()
    shapes = {repr(token) for token in present}
    waiting = [token for _, token in sorted(added.items()) if repr(token) not in shapes]
    known = {token.content for token in present} | {token.content for token in waiting}
    specials = {value if isinstance(value, str) else value.content for value in named.values()}
    for value in [*named.values(), *extra]:
        content = value if isinstance(value, str) else value.content
        if content not in known:
            known.add(content)
            waiting.append(AddedToken(value, special=True) if isinstance(value, str) else value)
    for token in waiting:
        if token.content in specials:
            token.special = True
    if waiting:
        tokenizer.add_tokens(waiting)


def gather_templates(folder, settings):
    """{name: source}, from chat_template.jinja and its siblings or else from tokenizer_config.json."""
    sources = {}
    path = os.path.join(folder, "chat_template.jinja")
    if os.path.exists(path):
        sources["default"] = read_text(path)
    others = os.path.join(folder, "additional_chat_templates")
    if os.path.isdir(others):
        for name in sorted(os.listdir(others)):
            if name.endswith(".jinja"):
                sources[name.removesuffix(".jinja")] = read_text(os.path.join(others, name))
    if sources:
        return sources
    value = settings.get("chat_template")
    if value is None:
        value = read_object(os.path.join(folder, "chat_template.json"), optional=True).get("chat_template")
    if isinstance(value, str):
        return {"default": value}
    if isinstance(value, list) and all(isinstance(entry, dict) for entry in value):
        value = {entry.get("name"): entry.get("template") for entry in value}
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(
        isinstance(text, str) for pair in value.items() for text in pair
    ):
        raise BadInput(
            f"{folder}: chat_template must be a text or a list of named texts; correct tokenizer_config.json."
        )
    return value


def digest(*texts):
    return hashlib.sha256("".join(texts).encode("utf-8")).hexdigest()


class Model:
    """What a model folder says about text: tokenizer, special tokens, chat template, vocabulary size."""

    def __init__(self, folder):
        if not os.path.isdir(folder):
            raise BadInput(f"{folder}: is not a folder; --model needs the folder of a Hugging Face model.")
        config_path = os.path.join(folder, "config.json")
        config = read_object(config_path)
        self.vocabulary = config.get("vocab_size")
        if type(self.vocabulary) is not int or self.vocabulary < 1:
            raise BadInput(f"{config_path}: vocab_size must be a positive integer; correct it.")
        self.positions = config.get("max_position_embeddings")
        self.folder = folder
        self.notes = []
        self.load_tokenizer(folder, config)
        self.load_templates(folder)

    def load_tokenizer(self, folder, config):
        path = os.path.join(folder, "tokenizer.json")
        if not os.path.exists(path):
            raise BadInput(
                f"{path}: is missing; save the model's fast tokenizer there (tokenizer.model is not read)."
            )
        text = read_text(path)
        file_json = read_object(path)
        settings = read_object(os.path.join(folder, "tokenizer_config.json"), optional=True)
        try:
            tokenizer = Tokenizer.from_str(text)
            declared = settings.get("tokenizer_class") or config.get("tokenizer_class")
            class_name = choose_class(config.get("model_type"), declared, text)
            if class_name in CLASS_DEFAULTS and file_json.get("model", {}).get("type", "BPE") == "BPE":
                tokenizer = rebuild(class_name, file_json, tokenizer.post_processor, settings)
                self.notes.append(
                    f"the tokenizer is {class_name} as Transformers 5 builds it: Transformers 4 runs "
                    "tokenizer.json as it is, and can differ around leading spaces"
                )
            elif class_name not in PLAIN:
                self.notes.append(f"{class_name} runs tokenizer.json as it is")
            added = gather_tokens(folder, settings, file_json)
            named = gather_named(settings, added, class_name)
            extra = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or []
            extra = [added_token(token) for token in extra] if isinstance(extra, list) else []
            register(tokenizer, added, named, extra)
        except BadInput:
            raise
        except Exception as error:  # the library raises plain Exception for whatever it cannot read
            raise BadInput(
                f"{path}: the tokenizer cannot be loaded ({' '.join(str(error).split())[:300]})."
            ) from error
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = bool(settings.get("split_special_tokens", False))
        if getattr(tokenizer.model, "dropout", None):
            tokenizer.model.dropout = None
        self.tokenizer = tokenizer
        self.special = {
            name: value if isinstance(value, str) else value.content for name, value in named.items()
        }
        self.eos_token = self.special.get("eos_token")
        self.bos_id = self.id_of("bos_token")
        self.eos_id = self.id_of("eos_token")
        self.settings = settings
        self.tokenizer_sha256 = digest(text)
        self.check_bos(settings)

    def id_of(self, name):
        token = self.special.get(name)
        return None if token is None else self.tokenizer.token_to_id(token)

    def check_bos(self, settings):
        wanted = settings.get("add_bos_token")
        if wanted is None or self.bos_id is None:
            return
        if (self.encode("a")[:1] == [self.bos_id]) != bool(wanted):
            self.notes.append(
                f"tokenizer_config.json has add_bos_token={str(bool(wanted)).lower()} but tokenizer.json's "
                "post-processor says otherwise; the latter counts, as in Transformers 5"
            )

    def load_templates(self, folder):
        sources = gather_templates(folder, self.settings)
        self.template = ChatTemplate(sources, self.special, folder)
        self.template_sha256 = digest(json.dumps(sources, sort_keys=True)) if sources else ""
        if list(sources) == ["default"]:
            self.template_sha256 = digest(sources["default"])
        if any("strftime_now" in source for source in sources.values()):
            self.notes.append(
                "the chat template can write today's date: prepared on another day, ids may differ"
            )

    def encode(self, text, special=True):
        return self.tokenizer.encode(text, add_special_tokens=special).ids

    def pieces(self, ids):
        """The tokens as the vocabulary spells them."""
        return [self.tokenizer.id_to_token(token) or "" for token in ids]
