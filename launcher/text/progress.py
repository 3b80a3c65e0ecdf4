"""How far a long command is: a bar on a terminal, a plain line now and then elsewhere. On standard error."""

import sys
import time

WIDTH = 24
PLAIN_SECONDS = 15.0
LIVE_SECONDS = 0.1


class Progress:
    """`fraction` of the work done, in [0, 1], and rows so far."""

    def __init__(self, name, stream=sys.stderr):
        self.name = name
        self.stream = stream
        self.live = stream.isatty()
        self.start = time.monotonic()
        self.last = self.start
        self.shown = False

    def update(self, fraction, rows):
        now = time.monotonic()
        if now - self.last < (LIVE_SECONDS if self.live else PLAIN_SECONDS):
            return
        self.last = now
        elapsed = now - self.start
        fraction = min(max(fraction, 1e-9), 1.0)
        left = int(elapsed * (1 - fraction) / fraction)
        text = f"{rows:,} rows, {rows / elapsed:,.0f} rows/s, {left // 60}:{left % 60:02d} left"
        if self.live:
            bar = ("#" * int(WIDTH * fraction)).ljust(WIDTH)
            self.stream.write(f"\r{self.name}: {100 * fraction:3.0f} % |{bar}| {text}\033[K")
            self.shown = True
        else:
            self.stream.write(f"{self.name}: {100 * fraction:.0f} %, {text}\n")
        self.stream.flush()

    def clear(self):
        if self.shown:
            self.stream.write("\r\033[K")
            self.stream.flush()
            self.shown = False
