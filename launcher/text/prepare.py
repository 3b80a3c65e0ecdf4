"""`wpo prepare`: preference data and a model's tokenizer in, a groups file of token ids out."""

import argparse
import difflib
import hashlib
import json
import os
import signal
import sys

# Started as a file, not as a module: let `text` be found, and none of its modules under a bare name.
sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
os.environ["TOKENIZERS_PARALLELISM"] = "false"  # processes, not threads, carry the work

from text.audit import Audit, page
from text.errors import BadInput, BadRow
from text.groups_file import BLOCK, Spool, write_groups
from text.pool import convert_all, name_row
from text.progress import Progress
from text.rows import NEEDED, find_layout, parse_row
from text.sources import chunks_of, list_files, size_of
from text.template import one_line
from text.tokenizer import Model
from text.tokens import Rules

NAME = "wpo prepare"
EXAMPLES = """\
examples:
  wpo prepare --model zephyr-7b-sft --data ultrafeedback_binarized --split train_prefs --out train.h5
  wpo prepare --model llama-3-8b --data pairs.jsonl --out pairs.h5 --max_length 2048 --num_proc 16
  wpo prepare --model zephyr-7b-sft --data pairs.parquet --out pairs.h5 --truncation authors
  wpo prepare --model zephyr-7b-sft --data rankings.jsonl --out rankings.h5 --format ranked
"""


DEFAULT_LENGTH = 1024  # as in TRL


def positive(text):
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a positive integer, not {text}")
    return value


positive.__name__ = "integer"


class Parser(argparse.ArgumentParser):
    """With one sentence for an error instead of the usage, and help that notices a full disk."""

    def error(self, message):
        print(f"{NAME}: {one_line(message)}; `{NAME} --help` shows the options.", file=sys.stderr)
        sys.exit(2)

    def print_help(self, file=None):
        say(self.format_help().rstrip("\n"))

    def parse_all(self, words):
        options, rest = self.parse_known_args(words)
        for word in rest:
            name = word.partition("=")[0]
            if not name.startswith("-"):
                self.error(f"'{word}' belongs to no option")
            near = difflib.get_close_matches(name, self._option_string_actions, 1)
            self.error(f"unknown option {name}" + (f" (did you mean {near[0]}?)" if near else ""))
        return options


def parse_arguments(words):
    parser = Parser(
        prog=NAME,
        description="Turns preference data into a groups file: token ids, as TRL makes them, for `wpo train`.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--model",
        required=True,
        metavar="DIR",
        help="model folder: config.json, tokenizer.json, chat template",
    )
    add(
        "--data",
        required=True,
        nargs="+",
        action="extend",
        metavar="FILE",
        help="JSONL or Parquet files, or a folder of them",
    )
    add("--split", metavar="NAME", help="in a folder, take the files whose name starts with NAME")
    add("--out", required=True, metavar="FILE", help="the groups file to write")
    add("--max_length", type=positive, metavar="N",
        help="longest prompt with one completion, in tokens (default: 1024, or the model's positions if fewer)")  # fmt: skip
    add("--truncation", choices=("keep_start", "keep_end", "authors"), default="keep_start",
        help="what to keep of a longer one; authors: the WPO paper's runs (default: keep_start)")  # fmt: skip
    add("--max_prompt_length", type=positive, metavar="N", help="for --truncation authors (default: 512)")
    add("--max_samples", type=positive, metavar="N", help="read the first N rows only")
    add("--num_proc", type=positive, metavar="N", help="processes (default: one per available core)")
    add("--format", choices=("auto", *NEEDED), default="auto",
        help="what the rows are (default: auto, from the columns)")  # fmt: skip
    add("--overwrite", action="store_true", help="replace the output file if it exists")
    add("--json", action="store_true", help="print the audit as JSON")
    options = parser.parse_all([plain_option(word) for word in words])
    if options.truncation != "authors" and options.max_prompt_length is not None:
        parser.error("--max_prompt_length belongs to --truncation authors")
    if options.truncation == "authors":
        options.max_prompt_length = options.max_prompt_length or 512
        options.max_length = options.max_length or DEFAULT_LENGTH
        if options.max_prompt_length >= options.max_length:
            parser.error(
                f"--max_prompt_length {options.max_prompt_length} leaves no room for completions in --max_length "
                f"{options.max_length}"
            )
    if options.max_length is not None and options.max_length < 2:
        parser.error("--max_length must be at least 2: a prompt token and a completion token")
    if options.max_length is not None and options.max_length > 1 << 24:
        parser.error("--max_length must be at most 16777216")
    options.num_proc = options.num_proc or len(os.sched_getaffinity(0))
    return options


def plain_option(word):
    """--max-length is --max_length."""
    if not word.startswith("--") or word == "--":
        return word
    name, equals, value = word.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


def check_out(path, overwrite, sources):
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise BadInput(f"{path}: the folder {folder} does not exist; create it first.")
    if os.path.isdir(path):
        raise BadInput(f"{path}: is a folder; --out names a file.")
    if os.path.exists(path):
        if any(os.path.samefile(path, source) for source in sources):
            raise BadInput(f"{path}: is also --data; choose another --out.")
        if not overwrite:
            raise BadInput(f"{path}: exists; give --overwrite to replace it, or another --out.")
    return folder


def hash_files(paths):
    digest = hashlib.sha256()
    for path in paths:
        try:
            with open(path, "rb") as file:
                while block := file.read(BLOCK):
                    digest.update(block)
        except OSError as error:
            raise BadInput(f"{path}: cannot be read ({error.strerror}); check the file.") from error
    return digest.hexdigest()


def first_layout(files, wanted):
    for path in files:
        for chunk in chunks_of(path, 0, 1):
            line, raw = chunk.rows[0]
            try:
                return find_layout(parse_row(raw), wanted)
            except BadRow as error:
                raise BadInput(f"{name_row(path, 0, line)} {error}.") from error
    raise BadInput(f"{files[0]}: holds no rows; check --data.")


def all_chunks(files, limit):
    """Yields the chunks of all files, numbering rows through, at most `limit` rows."""
    offset = 0
    for path in files:
        count = 0
        for chunk in chunks_of(path, offset, None if limit is None else limit - offset):
            count = chunk.first + len(chunk.rows)
            yield chunk
        if count == 0 and (limit is None or offset < limit):
            raise BadInput(f"{path}: holds no rows; check --data.")
        offset += count
        if limit is not None and offset >= limit:
            return


def convert_to(spool, files, model, layout, rules, options):
    """Fills the spool; returns the audit of all rows."""
    audit = Audit(rules.max_length)
    progress = Progress(NAME)
    sizes = {path: size_of(path) for path in files}
    done = dict.fromkeys(files, 0)
    results = convert_all(all_chunks(files, options.max_samples), model, layout, rules, options.num_proc)
    try:
        for part, part_audit, path, position in results:
            spool.append_part(part)
            audit.add(part_audit)
            done[path] = position
            fraction = sum(done.values()) / sum(sizes.values())
            if options.max_samples is not None:
                fraction = max(fraction, audit.rows / options.max_samples)
            progress.update(fraction, audit.rows)
    finally:
        results.close()
        progress.clear()
    return audit


def check_kept(audit, model, rules, files):
    if audit.kept == 0:
        reasons = ", ".join(f"{reason} {count}" for reason, count in audit.dropped.items() if count)
        raise BadInput(
            f"{files[0]}: no row of {audit.rows} is left ({reasons}); raise --max_length or check the data."
        )
    warnings = []
    dropped = sum(audit.dropped.values())
    if 2 * dropped > audit.rows:
        reasons = ", ".join(f"{reason} {count}" for reason, count in audit.dropped.items() if count)
        warnings.append(f"{dropped} of {audit.rows} rows were dropped ({reasons})")
    if type(model.positions) is int and rules.max_length > model.positions:
        warnings.append(f"max_length {rules.max_length} is beyond the model's {model.positions} positions")
    if audit.double_bos:
        warnings.append(
            f"{audit.double_bos} rows begin with two BOS tokens; take BOS out of the text or the template"
        )
    return warnings


def choose_length(options, model):
    """What was asked for; else TRL's default, as far as the model has positions."""
    if options.max_length is not None:
        return options.max_length
    known = type(model.positions) is int and model.positions >= 2
    return min(DEFAULT_LENGTH, model.positions) if known else DEFAULT_LENGTH


def prepare(options):
    files = list_files(options.data, options.split)
    folder = check_out(options.out, options.overwrite, files)
    model = Model(options.model)
    layout = first_layout(files, options.format)
    rules = Rules(options.truncation, choose_length(options, model), options.max_prompt_length or 0)
    part = os.path.join(folder, f".{os.path.basename(options.out)}.{os.getpid()}.part")
    spool = None
    try:
        open(part, "xb").close()  # an unwritable folder shows before the work, not after
        spool = Spool(folder)
        audit = convert_to(spool, files, model, layout, rules, options)
        warnings = check_kept(audit, model, rules, files)
        summary = audit.summary(layout, rules, model.notes)
        attributes = {
            "format": "wpo-groups",
            "version": 1,
            "kind": layout.group_kind,
            **({"form": layout.form} if layout.form else {}),
            "vocabulary": model.vocabulary,
            "max_length": rules.max_length,
            "truncation": rules.truncation,
            "tokenizer_sha256": model.tokenizer_sha256,
            "chat_template_sha256": model.template_sha256,
            "source": ", ".join(os.path.basename(path) for path in files),
            "source_sha256": hash_files(files),
            "summary": json.dumps(summary, sort_keys=True),
        }
        size = write_groups(part, spool, attributes)
        check_out(options.out, options.overwrite, files)
        os.replace(part, options.out)
        sync_folder(folder)
    except OSError as error:
        raise BadInput(
            f"{options.out}: cannot be written ({error.strerror or error}); check folder and disk space."
        ) from error
    finally:
        if spool is not None:
            spool.close()
        if os.path.exists(part):
            os.unlink(part)
    report = {"out": options.out, "bytes": size, **summary}
    try:
        text = json.dumps(report, indent=2) if options.json else page(report)
        say(text, f"; {options.out} is complete")
    finally:
        for warning in warnings:
            print(f"{NAME}: warning: {warning}", file=sys.stderr)


def say(text, otherwise=""):
    """Prints to standard output. A reader that has seen enough needs no sentence, a full disk does."""
    try:
        print(text, flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still buffered
        if not isinstance(error, BrokenPipeError):
            raise BadInput(f"standard output cannot be written ({error.strerror}){otherwise}.") from error


def sync_folder(folder):
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def interrupt(number, frame):
    raise KeyboardInterrupt


def main(words):
    signal.signal(signal.SIGTERM, interrupt)
    try:
        if sys.stdout is not None:
            sys.stdout.reconfigure(errors="backslashreplace")  # tokens may hold what its encoding lacks
        prepare(parse_arguments(words))
        return 0
    except KeyboardInterrupt:
        print(f"{NAME}: interrupted; nothing was written", file=sys.stderr)
        return 130
    except BadInput as error:
        print(f"{NAME}: {error}", file=sys.stderr)
    except MemoryError:
        print(f"{NAME}: memory ran out; use a smaller --num_proc or a machine with more.", file=sys.stderr)
    except Exception as error:
        print(
            f"{NAME}: internal error: {type(error).__name__}: {one_line(error)}; please report it.",
            file=sys.stderr,
        )
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
