"""SSD's loss with every prior in it: focal loss and gradient harmonising in the place of mining."""

from __future__ import annotations

import torch

from ..mining import ghmc_loss, ghmr_loss, sigmoid_focal_loss, softmax_focal_loss
from .base import register
from .focal_loss import focal_alpha, focal_gamma
from .ghm_loss import GradientAverage, ghmr_mu
from .multibox_loss import MultiBoxLoss


class _Sigmoids(MultiBoxLoss):
    """Classes as independent sigmoids; the background's column takes no part, and an unmatched prior that overlaps an
    object by ``neg_overlap`` or more is no negative."""

    def unmined(self, matches, overlaps):
        if not self.sigmoid:
            return super().unmined(matches, overlaps)
        far = overlaps < self.param.multibox_loss_param.neg_overlap
        return (matches > -1).any(2) | far.all(2)

    def targets(self, conf, chosen, image, prior, own):
        """What each score ``[B, P, C]`` should be, and whether it counts, both bool."""
        target = torch.zeros_like(conf, dtype=torch.bool)
        target[image, prior, own] = True
        classes = torch.arange(conf.shape[2], device=conf.device)
        return target, chosen.unsqueeze(2) & (classes != self.param.multibox_loss_param.background_label_id)

    def refuse_softmax(self, what: str) -> None:
        """Raises:
        PortError: ``conf_loss_type`` is not LOGISTIC.
        """
        if self.conf_loss != "LOGISTIC":
            raise self.error(
                f"{what} takes sigmoids",
                field="multibox_loss_param.conf_loss_type",
                hint="state LOGISTIC, and a Sigmoid layer in the place of the test net's Softmax",
            )


@register("MultiBoxFocalLoss")
class MultiBoxFocalLoss(_Sigmoids):
    """MultiBoxLoss with focal loss in the place of the class loss (chuanqi305/FocalLoss), meant for
    ``mining_type: NONE``.

    With ``conf_loss_type: SOFTMAX`` it is the sum over priors of ``-alpha (1 - p_t)^gamma log(p_t)``, background
    weighed as any class; alpha 0.25 and gamma 2 unless stated in ``focal_loss_param``. With LOGISTIC it is the sigmoid
    cross-entropy without any focal term, as in the fork, unless ``activate: SIGMOID`` says otherwise (ours): then it is
    RetinaNet's, every class but the background a sigmoid, ``1 - alpha`` for what it is not, and priors that overlap an
    object by ``neg_overlap`` or more, unmatched, left out (0.4 in the paper). All is divided as in MultiBoxLoss: VALID
    is the number of matches, which is what the paper divides by.
    """

    fields = MultiBoxLoss.fields | {"focal_loss_param": {"alpha", "gamma", "gama", "activate"}}

    def setup(self, bottoms):
        super().setup(bottoms)
        p = self.param.focal_loss_param
        self.gamma, self.alpha = focal_gamma(self, p), focal_alpha(self, p, 0.25)
        self.sigmoid = p.activate == p.SIGMOID
        if self.sigmoid:
            self.refuse_softmax("activate: SIGMOID")

    def class_loss(self, conf, label, chosen, image, prior, own):
        if self.sigmoid:
            target, counted = self.targets(conf, chosen, image, prior, own)
            return (sigmoid_focal_loss(conf, target, alpha=self.alpha, gamma=self.gamma) * counted).sum()
        if self.conf_loss == "LOGISTIC":
            return super().class_loss(conf, label, chosen, image, prior, own)
        return softmax_focal_loss(conf[chosen], label[chosen], alpha=self.alpha, gamma=self.gamma).sum()


@register("MultiBoxGHMLoss")
class MultiBoxGHMLoss(_Sigmoids):
    """MultiBoxLoss with GHM-C and GHM-R in the place of its losses (ours), ``conf_loss_type: LOGISTIC`` and
    ``mining_type: NONE``.

    Every class but the background is a sigmoid, as for MultiBoxFocalLoss with ``activate: SIGMOID``; GHM-C is over all
    of them, GHM-R over the matched priors' coordinates, with the settings of GHMCLoss and GHMRLoss. Each is divided by
    its own number of examples, and the second multiplied by ``loc_weight``. ``mu`` is in the unit of encoded boxes: of
    the paper, which does not divide them by variances, ``mu`` 0.02 and weight 10 are 0.2 and 1 with a variance of 0.1.
    Blobs: the averages of the two, where they have momentum.
    """

    fields = {
        "multibox_loss_param": MultiBoxLoss.fields["multibox_loss_param"],
        "ghmc_loss_param": {"bins", "momentum", "rule", "m", "alpha"},
        "ghmr_loss_param": {"bins", "momentum", "rule", "mu", "m", "alpha"},
    }
    sigmoid = True

    def setup(self, bottoms):
        super().setup(bottoms)
        p = self.param.multibox_loss_param
        self.refuse_softmax("GHM-C")
        if p.mining_type != p.NONE:
            raise self.error("GHM weighs all priors", field="multibox_loss_param.mining_type", hint="state NONE")
        self.mu = ghmr_mu(self)
        self.class_average = GradientAverage(self, "ghmc_loss_param", 30, 0.75)
        self.box_average = GradientAverage(self, "ghmr_loss_param", 10, 0.7)

    def box_loss(self, predictions, diff):
        return ghmr_loss(predictions, predictions.detach() - diff, mu=self.mu, **self.box_average.options())

    def class_loss(self, conf, label, chosen, image, prior, own):
        target, counted = self.targets(conf, chosen, image, prior, own)
        return ghmc_loss(conf, target, counted, **self.class_average.options())

    def normalized(self, total, batch, count, matched):
        return total
