"""Chunks of rows over processes, results in order."""

import multiprocessing
import signal
from multiprocessing.connection import wait

import numpy

from text.audit import Audit
from text.errors import BadInput, BadRow
from text.rows import parse_row, read_example
from text.tokens import make_group

SIGNALS = (signal.SIGINT, signal.SIGTERM)
state = {}


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
            audit.count(group, example.scores, number, model, layout)
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
    state.update(model=model, layout=layout, rules=rules)
    for result in map(convert, chunks) if processes == 1 else convert_parallel(chunks, processes):
        if isinstance(result, Exception):
            raise result
        if isinstance(result, str):
            raise BadInput(result)
        yield result


def work(link, others):
    """A worker process: chunks in, results out, until the main process closes its end or is gone."""
    # Ctrl-C and a batch system's end reach every process; only the main one answers.
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    for other in others:
        other.close()
    try:
        while True:
            chunk = link.recv()
            try:
                result = convert(chunk)
            except MemoryError as error:
                result = error
            except Exception as error:  # perhaps of a kind that cannot travel
                result = RuntimeError(f"{type(error).__name__}: {error}")
            link.send(result)
    except (EOFError, OSError):
        pass


def start_workers(count, links, workers):
    """Appends to `links`, of which the main process holds one end and the worker the other, nobody else: when
    one of them dies, it shows at the other, also in the middle of a message."""
    # Forking shares the loaded tokenizer. No signal may find a child that still has this process's handlers.
    context = multiprocessing.get_context("fork")
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        for _ in range(count):
            near, far = context.Pipe()
            links.append(near)
            worker = context.Process(target=work, args=(far, list(links)), daemon=True)
            worker.start()
            workers.append(worker)
            far.close()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def convert_parallel(chunks, processes):
    links, workers = [], []
    try:
        start_workers(processes, links, workers)
        yield from in_order(iter(chunks), links)
    finally:
        for worker in workers:
            worker.kill()
        for worker in workers:
            worker.join()
        for link in links:
            link.close()


def in_order(chunks, links):
    """Yields the results of all chunks. A worker has one chunk at a time, so neither side waits to send."""
    idle, busy, ready = list(links), {}, {}
    sent = due = 0  # chunks handed out; results yielded
    chunk = next(chunks, None)
    while chunk is not None or busy or ready:
        while chunk is not None and idle and sent - due < 3 * len(links):
            link = idle.pop()
            exchange(link.send, chunk)
            busy[link] = sent
            sent += 1
            chunk = next(chunks, None)
        for link in wait(list(busy)) if busy else ():
            ready[busy.pop(link)] = exchange(link.recv)
            idle.append(link)
        while due in ready:
            yield ready.pop(due)
            due += 1


def exchange(call, *values):
    try:
        return call(*values)
    except (EOFError, OSError) as error:
        raise BadInput(
            "a worker process died, most likely for want of memory; use a smaller --num_proc or more memory."
        ) from error
