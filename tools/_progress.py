"""The progress bar of tools/convert.py."""

from __future__ import annotations

import contextlib
import sys
import threading

from prototxt.files import temporary_name


class Progress:
    """A bar over the bytes of all files on a terminal's stderr, once it takes longer than ``patience`` seconds.

    The writers know nothing of it: it watches the temporary file beside the target grow. Each of the
    :class:`converters.convert.Job` begins, prints in :meth:`printing`, and ends.
    """

    patience = 2.0

    def __init__(self, jobs):
        self.sizes = {id(job): job.source.stat().st_size for job in jobs if not job.error}
        self.current, self.finished, self.bar = None, 0, None
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self):
        if sys.stderr.isatty():
            self.thread.start()
        return self

    def __exit__(self, *_):
        self.stopped.set()
        if self.thread.is_alive():
            self.thread.join()

    def begin(self, job) -> None:
        self.current = job

    def end(self, job) -> None:
        self.current, self.finished = None, self.finished + self.sizes.get(id(job), 0)

    def printing(self):
        """A context to print in, which takes the bar out of the way."""
        bar = self.bar
        return bar.external_write_mode() if bar is not None else contextlib.nullcontext()

    def _watch(self) -> None:
        if self.stopped.wait(self.patience):
            return
        from tqdm import tqdm

        with tqdm(total=sum(self.sizes.values()), unit="B", unit_scale=True, leave=False) as self.bar:
            while not self.stopped.wait(0.2):
                self.bar.update(self.finished + self._written(self.current) - self.bar.n)
        self.bar = None

    def _written(self, job) -> int:
        if job is None or job.target is None:
            return 0
        try:
            return min(temporary_name(job.target).stat().st_size, self.sizes[id(job)])
        except OSError:  # not begun, or done
            return 0
