"""MultiBoxLoss: the loss of SSD, and of RefineDet, over matched and mined priors."""

from __future__ import annotations

import torch
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from prototxt.caffe_pb2 import PriorBoxParameter

from ..mining import hard_examples, max_negatives, multibox_conf_loss, multibox_loc_loss
from ..ops import decode_boxes, encode_boxes, match_boxes
from .base import register
from .loss import LossLayer, given_gradient
from .prior_box import check_predictions, read_priors


@register("MultiBoxLoss")
class MultiBoxLoss(LossLayer):
    """SSD's loss over priors: class loss of the matched and of mined negatives plus ``loc_weight`` times box loss.

    Bottoms: box predictions ``[B, P * 4]`` (times classes unless ``share_location``), class scores ``[B, P * C]``,
    priors ``[1, 2, 4P]`` and ground truth ``[1, 1, G, 8]``, rows of ``(image, label, _, x1, y1, x2, y2, difficult)`` in
    units of the image, image -1 for none. Both sums are divided by what ``loss_param.normalization`` says: VALID the
    number of matches that are left after mining, FULL ``B P``, BATCH_SIZE ``B``, NONE 1; never by less than 1.
    (SSD, Liu et al., ECCV 2016, section 2.2; ``MultiBoxLossLayer`` of weiliu89/caffe, branch ssd.)

    RefineDet's fork (Zhang et al., CVPR 2018) adds two bottoms: the class probabilities ``[B, 2P]`` of its first stage,
    where priors whose second is below ``objectness_score`` are no negatives, and its box predictions ``[B, 4P]``, which
    move the priors before they are matched. Its first stage has two classes: every label from 2 up counts as 1.

    As in Caffe: images without ground truth give no negatives; with ``encode_variance_in_target`` the gradient lacks
    the division by the variance; with ``mining_type: NONE`` and LOGISTIC, image i's one-hot labels start ``i P`` places
    into the table, not ``i P C``, and places without a label hold ``background_label_id``.
    """

    fields = {
        "multibox_loss_param": {
            "loc_loss_type", "conf_loss_type", "loc_weight", "num_classes", "share_location", "match_type",
            "overlap_threshold", "use_prior_for_matching", "background_label_id", "use_difficult_gt", "do_neg_mining",
            "neg_pos_ratio", "neg_overlap", "code_type", "encode_variance_in_target", "map_object_to_agnostic",
            "ignore_cross_boundary_bbox", "bp_inside", "mining_type", "nms_param", "sample_size", "use_prior_for_nms",
            "objectness_score",
        },
        "loss_param": {"normalization", "normalize"},
    }  # fmt: skip
    num_bottoms = (4, 6)

    def allow_force_backward(self, bottom):
        return bottom < 2

    def setup(self, bottoms):
        p, name = self.param.multibox_loss_param, "multibox_loss_param."
        if p.num_classes < 1:
            raise self.error("must be given, and at least 1", field=name + "num_classes")
        if p.background_label_id >= p.num_classes and (p.conf_loss_type == p.SOFTMAX or p.mining_type != p.NONE):
            raise self.error(f"{p.background_label_id} is no class", field=name + "background_label_id")
        if p.HasField("do_neg_mining") and p.do_neg_mining is (p.mining_type == p.NONE):
            raise self.error("contradicts mining_type", field=name + "do_neg_mining", hint="leave it out")
        if p.mining_type != p.NONE and not p.share_location:
            raise self.error("mining needs share_location", field=name + "share_location")
        if p.mining_type == p.HARD_EXAMPLE and p.sample_size < 1:
            raise self.error("must be positive", field=name + "sample_size")
        if p.map_object_to_agnostic and (p.num_classes, p.background_label_id) != (2, 0):
            raise self.error("needs 2 classes, 0 the background", field=name + "map_object_to_agnostic")
        if len(bottoms) > 5 and not p.share_location:
            raise self.error("refined priors need share_location", field=name + "share_location")
        self.mode = self.normalization(self.param.loss_param.VALID)
        self.code = PriorBoxParameter.CodeType.Name(p.code_type)
        self.loc_loss = "SMOOTH_L1" if p.loc_loss_type == p.SMOOTH_L1 else "L2"
        self.conf_loss = "SOFTMAX" if p.conf_loss_type == p.SOFTMAX else "LOGISTIC"
        terms = list(self.param.propagate_down) or [True, True]  # a prediction without gradient has no loss either
        self.weights = p.loc_weight * terms[0], float(terms[1])

    def infer(self, bottoms):
        self._check_shapes(bottoms)
        return [torch.empty((), device="meta")]

    def _check_shapes(self, bottoms) -> tuple[int, int]:
        p = self.param.multibox_loss_param
        boxes = 4 if p.share_location else 4 * p.num_classes
        batch, count = check_predictions(self, bottoms, [boxes, p.num_classes, None, None, 2, 4])
        if bottoms[3].dim() != 4 or bottoms[3].shape[3] < 8:
            raise self.error(f"ground truth has rows of 8, not {tuple(bottoms[3].shape)}", field="bottom[3]")
        return batch, count

    def forward(self, bottoms):
        p = self.param.multibox_loss_param
        batch, count = self._check_shapes(bottoms)
        loc, conf = bottoms[0].reshape(batch, count, -1, 4), bottoms[1].reshape(batch, count, p.num_classes)
        truth = self._ground_truth(bottoms[3], batch, loc.device)
        with torch.no_grad():
            boxes, variances = read_priors(self, bottoms[2], self.code)
            coding = (self.code, None if p.encode_variance_in_target else variances)
            priors = refined = boxes.unsqueeze(0)
            if len(bottoms) > 5:
                refined = decode_boxes(priors, bottoms[5].reshape(batch, count, 4), *coding)
            matches, overlaps = self._match(loc, priors, refined, coding, truth)
            labels = pad_sequence([labels for labels, _ in truth], batch_first=True)
            targets = pad_sequence([boxes for _, boxes in truth], batch_first=True)
            image, prior, place = (matches > -1).nonzero().unbind(1)
            matched = image, matches[image, prior, place]
            anchors = refined.expand(batch, -1, -1)[image, prior]
            diff = self._differences(loc[image, prior, place], anchors, targets[matched], coding, variances[prior])
            own, label = labels[matched], torch.full((batch * count,), p.background_label_id, device=loc.device)
            label.scatter_reduce_(
                0, image * count + prior, own, "amax", include_self=False
            )  # of several the last class
            label = label.view(batch, count)
            chosen = self.unmined(matches, overlaps)
            if p.mining_type != p.NONE:
                hardness = multibox_conf_loss(conf, label, self.conf_loss)
                if p.mining_type == p.HARD_EXAMPLE:
                    hardness[image, prior] += multibox_loc_loss(diff, self.loc_loss)
                chosen = self._mine(hardness, matches[..., 0], overlaps[..., 0], bottoms, loc, priors, coding, truth)
        kept = chosen[image, prior]
        image, prior, place, own, diff = image[kept], prior[kept], place[kept], own[kept], diff[kept]
        box_loss = self.box_loss(loc[image, prior, place], diff)
        class_loss = self.class_loss(conf, label, chosen, image, prior, own)
        total = self.weights[0] * box_loss + self.weights[1] * class_loss
        return [self.normalized(total, batch, count, len(image))]

    # ---- what the losses after this one do otherwise

    def unmined(self, matches, overlaps):
        """The priors whose class counts where nothing is mined, ``[B, P]`` bool: all of them."""
        return torch.ones(matches.shape[:2], dtype=torch.bool, device=matches.device)

    def box_loss(self, predictions, diff):
        """Of the matched predictions ``[M, 4]`` and what they and their targets differ by."""
        slope = diff.clamp(-1, 1) if self.loc_loss == "SMOOTH_L1" else diff
        return given_gradient(multibox_loc_loss(diff, self.loc_loss).sum(), predictions, slope)

    def class_loss(self, conf, label, chosen, image, prior, own):
        """Of scores ``[B, P, C]`` where ``chosen`` ``[B, P]``; ``label`` is each prior's, the background's where there
        is no match, and the matches are ``own[m]`` at ``(image[m], prior[m])``."""
        if self.conf_loss == "SOFTMAX":
            return self._softmax_loss(conf[chosen], label[chosen])
        return self._logistic_loss(conf, chosen, image, prior, own)

    def normalized(self, total, batch: int, count: int, matched: int):
        """The sum by what ``loss_param`` says."""
        return total / self.normalizer(self.mode, batch, batch * count, torch.tensor(matched))

    # ---- ground truth, matching, mining

    def _ground_truth(self, blob, batch, device):
        """``[(labels [G], boxes [G, 4])]``, one for each image.

        Raises:
            PortError: a label that is background, or no class of the net.
        """
        p = self.param.multibox_loss_param
        rows = blob.detach().flatten()[: blob.shape[2] * 8].reshape(-1, 8).cpu()  # so Caffe reads wider blobs, too
        rows = rows[rows[:, 0].trunc() != -1]
        image, label = rows[:, 0].long(), rows[:, 1].long()
        if p.num_classes == 2:
            label = label.clamp(max=1)
        wrong = (label == p.background_label_id) | (label < 0) | (label >= p.num_classes)
        if wrong.any():
            raise self.error(
                f"ground truth of label {label[wrong][0].item()} in a net of {p.num_classes} classes, "
                f"{p.background_label_id} the background",
                field="bottom[3]",
                hint="the data set has other classes than the net; check num_classes and the label map",
            )
        counts = torch.ones_like(label, dtype=torch.bool) if p.use_difficult_gt else rows[:, 7] == 0
        return [
            (label[mine].to(device), rows[mine, 3:7].to(device))
            for mine in (counts & (image == i) for i in range(batch))
        ]

    def _match(self, loc, priors, refined, coding, truth):
        """Ground truth of each prior and its largest overlap, ``[B, P, 1]``, or one for each class's prediction."""
        p, (batch, count, places, _) = self.param.multibox_loss_param, loc.shape
        options = {
            "overlap_threshold": p.overlap_threshold,
            "per_prediction": p.match_type == p.PER_PREDICTION,
            "ignore_cross_boundary": p.ignore_cross_boundary_bbox,
        }
        matches = torch.full((batch, count, places), -1, device=loc.device)
        overlaps = loc.new_zeros(batch, count, places)
        for i, (labels, boxes) in enumerate(truth):
            if not len(labels):
                continue
            if p.use_prior_for_matching:
                index, overlap = match_boxes(refined[i % len(refined)], boxes, **options)
                matches[i], overlaps[i] = index[:, None], overlap[:, None]
                if places > 1:  # each match belongs to the prediction of its class
                    own = labels[index.clamp(min=0)][:, None] == torch.arange(places, device=loc.device)
                    matches[i] = torch.where(own & (index[:, None] > -1), matches[i], -1)
                continue
            for c in range(places):
                these = torch.arange(len(labels), device=loc.device) if places == 1 else (labels == c).nonzero()[:, 0]
                predicted = decode_boxes(priors[0], loc[i, :, c], *coding)
                index, overlaps[i, :, c] = match_boxes(predicted, boxes[these], **options)
                if len(these):
                    matches[i, :, c] = torch.where(index > -1, these[index.clamp(min=0)], index)
        return matches, overlaps

    def _differences(self, predictions, anchors, boxes, coding, variances):
        """Prediction less target, ``[M, 4]``; 0 where ``bp_inside`` lets nothing back."""
        p, (code, divisor) = self.param.multibox_loss_param, coding
        own = None if divisor is None else variances
        target = encode_boxes(anchors, boxes, code, own)
        if p.bp_inside:
            moved = anchors if p.use_prior_for_matching else decode_boxes(anchors, predictions, code, own)
            predictions = torch.where((moved < 0) | (moved > 1), target, predictions)
        if p.encode_variance_in_target:
            return predictions / variances - target / variances
        return predictions - target

    def _mine(self, hardness, matches, overlaps, bottoms, loc, priors, coding, truth):
        """The priors whose class counts, ``[B, P]``: matched ones and negatives."""
        p, nms = self.param.multibox_loss_param, {}
        if p.HasField("nms_param") and p.nms_param.nms_threshold > 0:
            boxes = priors if p.use_prior_for_nms else decode_boxes(priors, loc[:, :, 0], *coding)
            nms = {"boxes": boxes, "nms_threshold": p.nms_param.nms_threshold, "top_k": p.nms_param.top_k}
        present = torch.tensor([len(labels) > 0 for labels, _ in truth], device=loc.device)[:, None].expand_as(matches)
        if len(bottoms) > 4:
            present = present & (bottoms[4].reshape(*matches.shape, 2)[..., 1] >= p.objectness_score)
        if p.mining_type == p.HARD_EXAMPLE:
            return hard_examples(hardness, present, sample_size=p.sample_size, **nms) & (matches > -2)
        ratio, overlap = p.neg_pos_ratio, p.neg_overlap
        negatives = max_negatives(
            hardness, matches, overlaps, neg_pos_ratio=ratio, neg_overlap=overlap, eligible=present, **nms
        )
        return negatives | (matches > -1)

    def _softmax_loss(self, scores, label):
        slope = torch.softmax(scores.detach(), 1)
        slope[torch.arange(len(label), device=label.device), label] -= 1
        return given_gradient(multibox_conf_loss(scores, label).sum(), scores, slope)

    def _logistic_loss(self, conf, chosen, image, prior, label):
        p = self.param.multibox_loss_param
        target = torch.full_like(conf, p.background_label_id, requires_grad=False)
        if p.mining_type == p.NONE:
            target.view(-1)[image * conf.shape[1] + prior * conf.shape[2] + label] = 1
        else:
            negative = chosen.clone()
            negative[image, prior] = False
            target[..., p.background_label_id][negative] = 1
            target[image, prior, label] = 1
        return F.binary_cross_entropy_with_logits(conf[chosen], target[chosen], reduction="sum")
