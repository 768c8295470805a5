"""The losses, one a paper, as pure functions on tensors.

Every function takes the student's tensor first and returns a scalar. The teacher's side is always detached,
so no gradient reaches it whatever the caller forgot. Half precision is widened to float32 before anything is
squared or summed; float64 stays float64.

Names: N images, C channels (or classes), H and W the size of the map.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.errors import DistillError

IGNORE_INDEX = 255


def cross_entropy(
    logits: Tensor, labels: Tensor, ignore_index: int = IGNORE_INDEX, count: Tensor | None = None
) -> Tensor:
    """Mean over the labelled pixels of -log softmax(logits)[label].

    logits (N, C, H, W), labels (N, H, W) of any integer type. Void pixels (`ignore_index`) do not count,
    neither above nor below the fraction. A batch without any labelled pixel gives 0 with a gradient of 0, not
    NaN. `count` is what the sum is divided by, in place of the number of labelled pixels: for a part of a batch, that
    number's share in the batch.
    """
    rows, classes = _pixels(_widen(logits)).flatten(0, -2), labels.long().flatten()
    total = _summed_cross_entropy(rows, classes, ignore_index, at_once=not logits.is_cuda)
    return total / ((labels != ignore_index).sum().clamp(min=1) if count is None else count)


def _summed_cross_entropy(rows: Tensor, classes: Tensor, ignore_index: int, at_once: bool) -> Tensor:
    """Rows (P, C) and their classes (P,) to the sum over all pixels, which the loss itself forms with `at_once`.

    On CUDA it would do so in a single block of threads, forward and backward, while the loss of every pixel by itself,
    and a sum after it, keep the whole GPU busy. The gradient is the same to the bit, the sum but for its last digits.
    """
    reduction = "sum" if at_once else "none"
    return F.cross_entropy(rows, classes, ignore_index=ignore_index, reduction=reduction).sum()


def kd(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 4.0) -> Tensor:
    """T² · mean over pixels of KL(softmax(t / T) ‖ softmax(s / T)), summed over classes.

    Hinton, Vinyals and Dean 2015, "Distilling the Knowledge in a Neural Network", section 2. Both logits (N,
    C, H, W); the mean is over all N·H·W pixels, void ones included. The gradient of the softened term shrinks
    as 1 / T², so the factor T² keeps its size comparable from one temperature to the next.
    """
    _same_shape(student_logits, teacher_logits)
    student = F.log_softmax(_pixels(_widen(student_logits)) / temperature, dim=-1)
    teacher = F.log_softmax(_pixels(_widen(teacher_logits.detach())) / temperature, dim=-1)
    pixels = student.numel() // student.shape[-1]
    return F.kl_div(student, teacher, reduction="sum", log_target=True) * (temperature**2 / pixels)


def at(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """mean((a_s - a_t)²) with a = L2-normalise(flatten(mean_C F²)).

    Zagoruyko and Komodakis 2017, "Paying More Attention to Attention", equation 2, with the mean of squares
    over channels as the attention. Maps (N, C, H, W); the numbers of channels may differ, the sizes may not.
    The mean is over all N·H·W places.
    """
    return _normalised_difference(attention_map(student_map), attention_map(teacher_map.detach()))


def ofd(student_map: Tensor, teacher_map: Tensor, margin: Tensor) -> Tensor:
    """Partial L2: Σ (s - t')² · [s > t' or t' > 0] with t' = max(t, margin), summed over everything.

    Heo et al. 2019, "A Comprehensive Overhaul of Feature Distillation", equations 1 to 3. Both maps (N, C, H,
    W), before their ReLU; margin (C,), from `ofd_margin`. Where the teacher is silent (t' <= 0) a student
    that is below the target is let be: ReLU hides the difference. There is no division here, not even by the
    batch.
    """
    _same_shape(student_map, teacher_map)
    student = _widen(student_map)
    target = torch.maximum(_widen(teacher_map.detach()), margin.detach().to(student.dtype).view(1, -1, 1, 1))
    counts = (student > target) | (target > 0)
    return torch.where(counts, student - target, 0.0).square().sum()


@torch.no_grad()
def ofd_margin(norm: nn.BatchNorm2d) -> Tensor:
    """(C,): mean of the negative half of a BatchNorm's output, taken as normal with mean μ (its bias) and std
    s.

    margin = μ - s · φ(μ/s) / Φ(-μ/s), with s = |weight|, φ and Φ the normal density and distribution; -3 s
    for channels that are hardly ever negative, Φ(-μ/s) <= 0.001. Heo et al. 2019, section 3.2.

    A channel whose weight is 0 always gives μ: its margin is min(μ, 0), the limit of the formula. A norm
    without weights (affine=False) has s = 1, μ = 0. Computed in float64, returned in the norm's own
    precision.
    """
    weight = torch.ones(norm.num_features) if norm.weight is None else norm.weight
    mean = torch.zeros_like(weight, dtype=torch.float64) if norm.bias is None else norm.bias.double()
    std = weight.double().abs()
    constant = std == 0
    ratio = mean / std  # NaN for 0 / 0, replaced at the end
    density = torch.exp(-ratio.square() / 2) / math.sqrt(2 * math.pi)
    below_zero = torch.special.ndtr(-ratio)
    rarely = below_zero <= 0.001
    # Where the -3 s branch is taken the quotient may be 0 / 0: give it a harmless divisor.
    margin = torch.where(rarely, -3 * std, mean - std * density / below_zero.masked_fill(rarely, 1.0))
    return torch.where(constant, mean.clamp(max=0), margin).to(weight.dtype)


def sakd(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """mean((L2n(g'_s) - L2n(g'_t))²) with g' the self-attended map of `self_attention_map`, flattened.

    The method under study, "Proposed" in its tables. Both maps (N, C, H, W), before their ReLU; the numbers
    of channels may differ, the sizes may not. The mean is over all places of g', N·H·W where the maps are
    square.
    """
    _same_shape(student_map[:, 0], teacher_map[:, 0])  # now: a resize to squares could hide the mistake
    return _normalised_difference(self_attention_map(student_map), self_attention_map(teacher_map.detach()))


def attention_map(feature_map: Tensor) -> Tensor:
    """g = mean_C F²: (N, C, H, W) to (N, H, W), how strongly each place responds.

    Zagoruyko and Komodakis 2017, section 3.1, with p = 2 and the mean in place of the sum.
    """
    # The same bits as .mean(dim=1) on a CPU in a third of the time: its gradient divides a full-size tensor.
    return _widen(feature_map).square().sum(dim=1) / feature_map.shape[1]


def self_attention_map(feature_map: Tensor) -> Tensor:
    """g' = g + (softmax_dim1(A) ⊙ g + softmax_dim2(A) ⊙ g) / sqrt(W) with A = g gᵀ and g = mean_C F².

    (N, C, H, W) to (N, H, W). A (N, H, H) compares the rows of g. The product ⊙ is elementwise, (H, H) with
    (H, W), so the published formula exists only where H = W, and such maps are never resampled. For all
    others this implementation first resizes g, bilinearly, to a square of its shorter side.
    """
    g = _to_square(attention_map(feature_map))
    # Autocast would run this product in half precision, and sums of fourth powers leave its range.
    with torch.autocast(g.device.type, enabled=False):
        rows = torch.bmm(g, g.transpose(1, 2))
    attended = rows.softmax(dim=1) * g + rows.softmax(dim=2) * g
    return g + attended / math.sqrt(g.shape[2])


def _to_square(g: Tensor) -> Tensor:
    """(N, H, W) to (N, K, K), K = min(H, W); the very same tensor if it is square already."""
    height, width = g.shape[1:]
    if height == width:
        return g
    side = min(height, width)
    return F.interpolate(g[:, None], size=(side, side), mode="bilinear", align_corners=True)[:, 0]


def _normalised_difference(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of two (N, H, W) maps, each scaled to Euclidean length 1 an image."""
    _same_shape(student, teacher)
    difference = F.normalize(student.flatten(1), dim=1) - F.normalize(teacher.flatten(1), dim=1)
    return difference.square().mean()


def _pixels(logits: Tensor) -> Tensor:
    """(N, C, H, W) to (N, H, W, C): in channels_last memory that is how they lie, and softmax need not copy them."""
    return logits.movedim(1, -1)


def _widen(tensor: Tensor) -> Tensor:
    """float16 and bfloat16 to float32; everything else as it is."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _same_shape(student: Tensor, teacher: Tensor) -> None:
    """Broadcasting would turn a wrong size into a wrong number, so refuse it."""
    if student.shape != teacher.shape:
        raise DistillError(
            f"The student's tensor is {tuple(student.shape)} and the teacher's {tuple(teacher.shape)}; resize the "
            "student's, or pass it through a connector, so that both agree."
        )
