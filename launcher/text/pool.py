"""Chunks of rows over processes, results in order."""

import collections
import multiprocessing
import signal
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import numpy

from text.audit import Audit
from text.errors import BadInput, BadRow
from text.rows import parse_row, read_example
from text.tokens import make_group

state = {}


def start_worker(model, layout, rules):
    """Ctrl-C reaches every process of the terminal; only the main one answers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    state.update(model=model, layout=layout, rules=rules)


def name_row(path, row, line):
    return f"{path}: row {row}" + ("" if line is None else f" (line {line})")


def check_vocabulary(group, model, where):
    largest = max(max(group.prompt), *(max(ids) for ids in group.completions))
    if largest >= model.vocabulary:
        text = model.pieces([largest])[0]
        raise BadInput(
            f"{where}: token {largest} ({text!r}) is not below vocab_size {model.vocabulary} of the model's "
            "config.json; use the tokenizer that belongs to the model."
        )


def convert(chunk):
    """The ids of one chunk, ready to be appended, and its audit; for a bad row, the sentence of the error."""
    model, layout, rules = state["model"], state["layout"], state["rules"]
    audit = Audit(rules.max_length)
    groups, rows, scores, labels = [], [], [], []
    try:
        for index, (line, raw) in enumerate(chunk.rows):
            where = name_row(chunk.path, chunk.first + index, line)
            number = chunk.offset + chunk.first + index
            try:
                example = read_example(parse_row(raw), layout)
                group = make_group(model, example, rules)
            except BadRow as error:
                raise BadInput(f"{where} {error}.") from error
            audit.count(group, number, model)
            if group.reason is None:
                check_vocabulary(group, model, where)
                groups.append(group)
                rows.append(number)
                scores += example.scores
                labels += example.labels
    except BadInput as error:
        return str(error)
    completions = [ids for group in groups for ids in group.completions]
    part = {
        "prompt_tokens": join([group.prompt for group in groups]),
        "prompt_lengths": [len(group.prompt) for group in groups],
        "completion_tokens": join(completions),
        "completion_lengths": [len(ids) for ids in completions],
        "group_sizes": [len(group.completions) for group in groups],
        "rows": rows,
        "scores": scores,
        "labels": labels,
    }
    return part, audit, chunk.path, chunk.done


def join(lists):
    return numpy.fromiter((token for ids in lists for token in ids), numpy.int32)


def convert_all(chunks, model, layout, rules, processes):
    """Yields (part, audit, path, done) in the order of the chunks, with a bounded number of them in flight."""
    if processes == 1:
        state.update(model=model, layout=layout, rules=rules)
        results = map(convert, chunks)
    else:
        results = convert_parallel(chunks, model, layout, rules, processes)
    for result in results:
        if isinstance(result, str):
            raise BadInput(result)
        yield result


def convert_parallel(chunks, model, layout, rules, processes):
    # Forking shares the loaded tokenizer; it happens before this process starts any thread of its own.
    context = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(processes, context, start_worker, (model, layout, rules))
    waiting = collections.deque()
    try:
        for chunk in chunks:
            waiting.append(pool.submit(convert, chunk))
            if len(waiting) >= 3 * processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise BadInput(
            "a worker process died, most likely for want of memory; use a smaller --num_proc or more memory."
        ) from error
    except BaseException:
        for process in list((pool._processes or {}).values()):
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
