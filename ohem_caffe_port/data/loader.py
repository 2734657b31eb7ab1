"""The endless stream of minibatches, made when asked for or ahead of that."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor

import cv2
import numpy as np
import torch
from torch import Tensor

from .. import distributed
from ..config import Config
from ..errors import PortError
from .minibatch import load_minibatch, plan_minibatch

READY = 4  # minibatches that wait to be used, besides those that workers are at


class MinibatchLoader:
    """Minibatches of shuffled images, in the original's ``RoIDataLayer`` order.

    Every random choice is made by the caller's thread, in sequence; with ``TRAIN.USE_PREFETCH`` workers only read and
    scale images, so the stream is the same for any number of workers, and ahead of use. Choices ahead of use are
    made from a copy of ``rng``, which other layers of the net draw from meanwhile: where there are such layers, a net
    sees other images than without prefetching (as with the original's ``BlobFetcher``), and so with
    ``TRAIN.SEED_PASSES``. Of several processes each makes the choices of all, and loads every so many-th minibatch.

    Workers are threads: decoding and scaling let go of Python's lock, and a minibatch of 20 MB is where it is needed.
    From another process it takes longer to arrive than to make (``benchmarks/data_pipeline.py``).

    As in the original, a permutation is replaced when ``cur + IMS_PER_BATCH >= len(roidb)``: the last images of each
    permutation are not used.

    Args:
        roidb: prepared, with box targets unless ``TRAIN.HAS_RPN``.
        plan, load: what makes a minibatch, of the form of the defaults.
        device: where minibatches go. For a CUDA device workers put them into pinned memory, from which they are copied
            while the device computes.

    Raises:
        PortError: no images, or settings that do not fit together.
    """

    def __init__(
        self, roidb, num_classes: int, cfg: Config, rng, *, plan=plan_minibatch, load=load_minibatch, device="cpu"
    ):
        self.roidb, self.num_classes, self.cfg, self.rng = roidb, num_classes, cfg, rng
        self.plan, self.load, self.device = plan, load, torch.device(device)
        train = cfg.TRAIN
        self.workers = train.PREFETCH_WORKERS if train.USE_PREFETCH else 0
        self.own_stream = bool(self.workers or train.SEED_PASSES or distributed.size() > 1)
        if self.own_stream:
            self.rng = np.random.RandomState()
            self.rng.set_state(rng.get_state())
        if not roidb:
            raise PortError("the roidb is empty: there is nothing to train on")
        if len(roidb) < train.IMS_PER_BATCH:
            raise PortError(f"{len(roidb)} images for minibatches of TRAIN.IMS_PER_BATCH {train.IMS_PER_BATCH}")
        if train.HAS_RPN and train.IMS_PER_BATCH != 1:
            raise PortError(
                f"TRAIN.IMS_PER_BATCH is {train.IMS_PER_BATCH}; a region proposal network takes one image at a time",
                field="TRAIN.IMS_PER_BATCH",
                hint="set it to 1",
            )
        if train.BATCH_SIZE > 0 and train.BATCH_SIZE % train.IMS_PER_BATCH:
            raise PortError(
                f"TRAIN.IMS_PER_BATCH ({train.IMS_PER_BATCH}) must divide TRAIN.BATCH_SIZE ({train.BATCH_SIZE})"
            )
        largest = max(int(entry["max_classes"].max(initial=0)) for entry in roidb)
        if largest >= num_classes:
            raise PortError(
                f"the data set has class {largest}, the net's data layer num_classes {num_classes}",
                hint="give the net as many classes as the imdb, background included",
            )
        self._states: deque[dict] = deque()  # of the stream, after each minibatch that is planned and not handed out
        self._ahead: deque[Future] = deque()
        self._pool: ThreadPoolExecutor | None = None
        self._stream = self._plans()
        self._shuffle()
        self._state = self._now()

    def _shuffle(self) -> None:
        if self.cfg.TRAIN.ASPECT_GROUPING:
            wide = np.array([entry["width"] >= entry["height"] for entry in self.roidb])
            inds = np.hstack([self.rng.permutation(np.where(wide)[0]), self.rng.permutation(np.where(~wide)[0])])
            if len(inds) % 2:
                raise PortError(
                    f"TRAIN.ASPECT_GROUPING pairs images, and there are {len(inds)}",
                    hint="switch it off with --set TRAIN.ASPECT_GROUPING False, or train with TRAIN.USE_FLIPPED",
                )
            pairs = inds.reshape(-1, 2)
            self._perm = pairs[self.rng.permutation(np.arange(len(pairs)))].reshape(-1)
        else:
            self._perm = self.rng.permutation(np.arange(len(self.roidb)))
        self._cur = 0

    def _plans(self):
        while True:
            plan = distributed.in_turn(self._plan, self._plan)
            self._states.append(self._now())
            yield plan

    def _plan(self):
        images = self.cfg.TRAIN.IMS_PER_BATCH
        if self._cur + images >= len(self.roidb):
            self._shuffle()
        inds = self._perm[self._cur : self._cur + images]
        self._cur += images
        return self.plan(self.roidb, inds, self.cfg, self.rng)

    def next_minibatch(self) -> dict[str, Tensor]:
        """The next minibatch's blobs; see :func:`ohem_caffe_port.data.minibatch.load_minibatch`.

        Raises:
            PortError: an image of it cannot be used.
        """
        if self.workers:
            if self._pool is None:
                cv2.setNumThreads(1)  # an image is one worker's
                self._pool = ThreadPoolExecutor(self.workers, thread_name_prefix="minibatches")
            while len(self._ahead) < self.workers + READY:
                self._ahead.append(self._pool.submit(self._made, next(self._stream)))
            blobs = self._ahead.popleft().result()
        else:
            blobs = self._made(next(self._stream))
        self._state = self._states.popleft()
        return blobs

    def _made(self, plan) -> dict[str, Tensor]:
        blobs = self.load(self.roidb, plan, self.num_classes, self.cfg)
        as_tensor = pinned if self.workers and self.device.type == "cuda" else torch.from_numpy
        return {name: as_tensor(blob) for name, blob in blobs.items()}

    def close(self) -> None:
        """Ends the workers; the stream goes on from here if another minibatch is asked for."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None
        self._go_to(self._position())

    def _position(self) -> dict:
        """After the last minibatch handed out (of the round, where there are several processes). Without a stream of
        its own nothing is planned ahead of it, and the random stream is where the net's layers left it."""
        return self._state if self.own_stream else self._now()

    def _go_to(self, state: dict) -> None:
        """Goes on from ``state``; forgets what was planned ahead."""
        self._perm, self._cur = state["perm"], state["cur"]
        self.rng.set_state(state["rng"])
        self._states.clear()
        self._ahead.clear()
        self._stream, self._state = self._plans(), state

    # ---- position in the stream, for resuming

    def _now(self) -> dict:
        return {"perm": self._perm, "cur": self._cur, "rng": self.rng.get_state()}

    def state_dict(self) -> dict[str, np.ndarray]:
        """Where the stream stands after the last minibatch handed out, as plain arrays."""
        state = self._position()
        numbers = np.array([state["cur"], len(self.roidb)], dtype=np.int64)
        return {"perm": state["perm"], "numbers": numbers, **rng_to_arrays(state["rng"])}

    def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
        """Continues from :meth:`state_dict`.

        Raises:
            PortError: the state is of a data set of another size.
            ValueError: it is not such a state.
        """
        cur, images = (int(v) for v in state["numbers"])
        if images != len(self.roidb):
            raise PortError(
                f"the snapshot was made with {images} images; this data set has {len(self.roidb)}",
                hint="resume with the same imdb and TRAIN settings, mirror images included",
            )
        if sorted(state["perm"].tolist()) != list(range(images)):
            raise ValueError("its order of images is no permutation")
        self.close()
        self._go_to({"perm": np.asarray(state["perm"]), "cur": cur, "rng": rng_from_arrays(state)})


def pinned(blob: np.ndarray) -> Tensor:
    """The same in pinned memory, for a CUDA device. (``Tensor.pin_memory`` starts threads for every thread it is called
    in.)"""
    copy = torch.empty(blob.shape, dtype=torch.from_numpy(blob).dtype, pin_memory=True)
    copy.numpy()[...] = blob
    return copy


def rng_to_arrays(state: tuple) -> dict[str, np.ndarray]:
    """``RandomState.get_state()`` as plain arrays."""
    _, keys, position, has_gauss, gauss = state
    return {"rng_keys": keys, "rng_position": np.array([position, has_gauss]), "rng_gauss": np.array(gauss)}


def rng_from_arrays(arrays: dict[str, np.ndarray]) -> tuple:
    """What ``RandomState.set_state`` takes, from :func:`rng_to_arrays`."""
    position, has_gauss = (int(v) for v in arrays["rng_position"])
    return "MT19937", np.asarray(arrays["rng_keys"]), position, has_gauss, float(arrays["rng_gauss"])
