"""What happened to the rows: counts that add up, and a page that shows them."""

import numpy

from text.rows import LARGEST_GROUP
from text.tokens import REASONS

EXAMPLES = 3  # boundary mismatches shown
SHOWN = 8  # tokens of each
BINS = 16
BAR = 40


class Audit:
    """Counts over rows. Audits of consecutive parts add up to the audit of the whole."""

    def __init__(self, max_length):
        self.rows = 0
        self.kept = 0
        self.truncated_rows = 0
        self.truncated_completions = 0
        self.dropped = dict.fromkeys(REASONS, 0)
        self.identical = 0
        self.tied = 0  # rows in which two completions have the same score
        self.group_sizes = numpy.zeros(LARGEST_GROUP + 1, numpy.int64)
        self.boundary = 0
        self.boundary_examples = []
        self.moved = 0
        self.double_bos = 0
        self.no_eos = 0
        self.completions = 0
        self.prompt_tokens = 0
        self.separate_tokens = 0  # of all sequences, each with its own copy of the prompt
        self.completion_lengths = numpy.zeros(max_length + 1, numpy.int64)
        self.total_lengths = numpy.zeros(max_length + 1, numpy.int64)

    def count(self, group, scores, row, model, layout):
        self.rows += 1
        self.double_bos += group.double_bos
        self.no_eos += group.no_eos
        if group.lost:
            self.boundary += 1
            if len(self.boundary_examples) < EXAMPLES:
                lost = group.lost[:SHOWN]
                self.boundary_examples.append({"row": row, "tokens": lost, "pieces": model.pieces(lost)})
        if group.reason is not None:
            self.dropped[group.reason] += 1
            return
        self.kept += 1
        self.moved += group.moved
        self.truncated_rows += group.truncated > 0
        self.truncated_completions += group.truncated
        ranked = 2 if layout.sampled else len(group.completions)  # what the policy drew may equal the others
        self.identical += repeats([tuple(ids) for ids in group.completions[:ranked]])
        self.tied += repeats([score for score in scores[:ranked] if score == score])
        self.group_sizes[len(group.completions)] += 1
        self.completions += len(group.completions)
        self.prompt_tokens += len(group.prompt)
        for ids in group.completions:
            self.separate_tokens += len(group.prompt) + len(ids)
            self.completion_lengths[len(ids)] += 1
            self.total_lengths[len(group.prompt) + len(ids)] += 1

    def add(self, other):
        for name, value in vars(other).items():
            if name == "dropped":
                for reason, count in value.items():
                    self.dropped[reason] += count
            elif name == "boundary_examples":
                self.boundary_examples = (self.boundary_examples + value)[:EXAMPLES]
            else:
                setattr(self, name, getattr(self, name) + value)

    def summary(self, layout, rules, notes):
        """The audit as JSON values; nothing in it depends on time, machine or number of processes."""
        dropped = sum(self.dropped.values())
        tokens = self.completion_tokens()
        shared = self.prompt_tokens + tokens
        return {
            "kind": layout.group_kind,
            **({"form": layout.form} if layout.form else {}),
            "truncation": rules.truncation,
            "max_length": rules.max_length,
            **({"max_prompt_length": rules.max_prompt_length} if rules.truncation == "authors" else {}),
            "rows": self.rows,
            "kept": self.kept,
            "completions": self.completions,
            "truncated_rows": self.truncated_rows,
            "truncated_completions": self.truncated_completions,
            "dropped": dropped,
            "dropped_because": {reason: count for reason, count in self.dropped.items() if count},
            "identical_completions": self.identical,
            **(self.ranking() if layout.form == "ranked" else {}),
            "boundary_mismatches": self.boundary,
            "boundary_examples": self.boundary_examples,
            "differs_from_separate_sequences": self.moved,
            "double_bos": self.double_bos,
            "completions_without_eos": self.no_eos,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": tokens,
            "mean_prompt_length": ratio(self.prompt_tokens, self.kept),
            "mean_completion_length": ratio(tokens, self.completions),
            "prefix_sharing_gain": ratio(self.separate_tokens, shared),
            "completion_lengths": spread(self.completion_lengths),
            "total_lengths": spread(self.total_lengths),
            "histogram": histogram(self.total_lengths),
            "notes": notes,
        }

    def ranking(self):
        sizes = {str(size): int(count) for size, count in enumerate(self.group_sizes) if count}
        return {"tied_scores": self.tied, "group_sizes": sizes}

    def completion_tokens(self):
        return int((numpy.arange(len(self.completion_lengths)) * self.completion_lengths).sum())


def repeats(values):
    return len(set(values)) < len(values)


def ratio(a, b):
    return round(a / b, 3) if b else 0.0


def spread(counts):
    """Smallest, median, 95 % and largest length of a table of counts by length."""
    total = int(counts.sum())
    if total == 0:
        return {"min": 0, "median": 0, "p95": 0, "max": 0}
    below = counts.cumsum()

    def at(rank):
        return int(numpy.searchsorted(below, rank))

    # Ranks from 1: the lower median, and the length that 95 % of the sequences do not exceed.
    return {"min": at(1), "median": at((total + 1) // 2), "p95": at(-(-total * 95 // 100)), "max": at(total)}


def show_spread(spread):
    return f"{spread['min']} to {spread['max']}, median {spread['median']}, 95 % up to {spread['p95']}"


def histogram(counts):
    """[{"from", "to", "count"}], equal bins over all lengths."""
    width = max(1, -(-(len(counts) - 1) // BINS))
    bins = []
    for start in range(1, len(counts), width):
        part = counts[start : start + width]
        bins.append({"from": start, "to": start + len(part) - 1, "count": int(part.sum())})
    while len(bins) > 1 and bins[-1]["count"] == 0:
        bins.pop()
    return bins


def percent(part, whole):
    return f"{part:,} ({100 * part / whole:.1f} %)" if whole else f"{part:,}"


def show_form(summary):
    form = summary.get("form")
    if form == "sampled":
        return " (chosen, rejected, sampled)"
    if form != "ranked":
        return ""
    sizes = [int(size) for size in summary["group_sizes"]]
    return f" (ranked, {min(sizes)} to {max(sizes)} in a group)"


def page(summary):
    """The audit as text; `summary` also names the file ("out") and its size ("bytes")."""
    s = summary
    form = s.get("form")
    lines = [
        f"{s['out']}: {s['kept']:,} groups of kind {s['kind']}{show_form(s)}, "
        f"{s['completions']:,} completions, {s['bytes']:,} bytes",
        f"  rows read                 {s['rows']:,}",
        f"  kept                      {percent(s['kept'], s['rows'])}",
        f"  truncated                 {percent(s['truncated_rows'], s['rows'])}, "
        f"{s['truncated_completions']:,} completions ({s['truncation']}, max_length {s['max_length']})",
        f"  dropped                   {percent(s['dropped'], s['rows'])}",
    ]
    lines += [f"    {reason:<24}{count:,}" for reason, count in s["dropped_because"].items()]
    if form:
        what = "two completions are equal" if form == "ranked" else "chosen equals rejected"
        lines.append(f"  {what:<25} {percent(s['identical_completions'], s['rows'])}, kept")
    if form == "ranked":
        lines.append(f"  two scores are equal      {percent(s['tied_scores'], s['rows'])}, kept")
    lines.append(f"  boundary mismatches       {percent(s['boundary_mismatches'], s['rows'])}")
    for example in s["boundary_examples"]:
        pairs = zip(example["pieces"], example["tokens"])
        lines.append(
            f"    row {example['row']}: the prompt loses "
            + ", ".join(f"{piece!r} ({id})" for piece, id in pairs)
        )
    if s["differs_from_separate_sequences"]:
        many, alone = ("two", "chosen and rejected") if form == "pair" else ("all", "completions")
        lines.append(
            f"  one prompt for {many}        {percent(s['differs_from_separate_sequences'], s['rows'])}: "
            f"cut where {alone} alone would be cut differently"
        )
    lines += [
        f"  double BOS                {percent(s['double_bos'], s['rows'])}",
        f"  completions without EOS   {s['completions_without_eos']:,} before truncation",
        f"  tokens                    {s['prompt_tokens']:,} in prompts, "
        f"{s['completion_tokens']:,} in completions",
        f"  mean length               prompt {s['mean_prompt_length']:.1f}, "
        f"completion {s['mean_completion_length']:.1f}",
        "  completion lengths        " + show_spread(s["completion_lengths"]),
        "  sequence lengths          " + show_spread(s["total_lengths"]),
        f"  prefix sharing            {s['prefix_sharing_gain']:.2f} x fewer tokens than separate sequences",
    ]
    top = max((entry["count"] for entry in s["histogram"]), default=0)
    if top:
        lines.append("  sequence length histogram (prompt + completion)")
    for entry in s["histogram"]:
        bar = "#" * -(-BAR * entry["count"] // top) if top else ""
        lines.append(f"    {entry['from']:>6} .. {entry['to']:<6} {entry['count']:>9,} {bar}".rstrip())
    lines += [f"  note: {note}" for note in s["notes"]]
    return "\n".join(lines)
