"""The losses, one per paper, as pure functions on tensors.

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

# A CPU's softmax takes so many numbers at once, with AVX-512. Along the rows of pixels with fewer classes it takes them
# one by one, and several times as long as over dim 1 (benchmarks/classes.py).
_AT_ONCE = 16

# Of vectors shorter than this no direction is taken: its gradient grows as their length goes to 0.
_SHORT = 1e-3


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    ignore_index: int = IGNORE_INDEX,
    count: Tensor | None = None,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Mean over the labelled pixels of -log softmax(logits)[label].

    logits (N, C, H, W), labels (N, H, W) of any integer type. Void pixels (`ignore_index`) are left out of the sum and
    of the count. A batch without any labelled pixel gives 0 with a gradient of 0, not NaN. `count` replaces the number
    of labelled pixels as the divisor: for a part of a batch, it is the part's share of the batch's number.
    `class_weights` (C,) multiply the loss of every pixel by the weight of its class; the divisor stays the same.
    """
    if labels.shape != logits.shape[:1] + logits.shape[2:]:  # flattened, a wrong shape would be a wrong number
        raise DistillError(
            f"the labels are {tuple(labels.shape)} and the logits {tuple(logits.shape)}; give labels (N, H, W) for "
            f"logits (N, C, H, W)"
        )
    logits, classes = _widen(logits), labels.long()
    labelled = classes != ignore_index  # of the wide type: one byte would take -100 for 156
    weights = None if class_weights is None else class_weights.to(logits.dtype)
    if not _few_classes(logits):
        logits, classes = _pixels(logits).flatten(0, -2), classes.flatten()
    total = _summed_cross_entropy(logits, classes, ignore_index, weights, at_once=not logits.is_cuda)
    return total / (labelled.sum().clamp(min=1) if count is None else count)


def class_weights(pixels: Tensor) -> Tensor:
    """Weights (C,) of the classes for `cross_entropy`: 1 / ln(1.02 + p) for a class with the share p of all pixels.

    Paszke et al. 2016, "ENet", section 5.1 (arXiv 1606.02147). `pixels` (C,) are the labelled pixels of each class.
    Scaled so that their mean over these pixels is 1: then a method's weight against cross-entropy means what it does
    without them. A class that is absent has the largest weight, which no pixel uses.
    """
    share = pixels.double() / pixels.sum().clamp(min=1)
    weights = 1 / torch.log(1.02 + share)
    return (weights / (weights * share).sum().clamp(min=1e-12)).float()


def _summed_cross_entropy(
    logits: Tensor, classes: Tensor, ignore_index: int, weights: Tensor | None, at_once: bool
) -> Tensor:
    """The sum over all pixels, which the loss itself forms with `at_once`.

    Logits (P, C) or (N, C, H, W), and their classes (P,) or (N, H, W).

    On CUDA it would do so in a single block of threads, forward and backward, while the loss of every pixel by itself,
    and a sum after it, keep the whole GPU busy. The gradient is the same to the bit, the sum but for its last digits.
    """
    reduction = "sum" if at_once else "none"
    return F.cross_entropy(logits, classes, weights, ignore_index=ignore_index, reduction=reduction).sum()


def kd(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 4.0) -> Tensor:
    """T² · mean over pixels of KL(softmax(t / T) ‖ softmax(s / T)), summed over classes.

    Hinton, Vinyals and Dean 2015, "Distilling the Knowledge in a Neural Network", section 2. Both logits (N,
    C, H, W); the mean is over all N·H·W pixels, void ones included. The gradient of the softened term shrinks
    as 1 / T², so the factor T² keeps its size comparable from one temperature to the next.
    """
    _same_shape(student_logits, teacher_logits)
    student = _log_probabilities(student_logits, temperature)
    teacher = _log_probabilities(teacher_logits.detach(), temperature)
    pixels = student_logits.numel() // student_logits.shape[1]
    return F.kl_div(student, teacher, reduction="sum", log_target=True) * (temperature**2 / pixels)


def at(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """mean((a_s - a_t)²) with a = L2-normalise(flatten(mean_C F²)).

    Zagoruyko and Komodakis 2017, "Paying More Attention to Attention", equation 2, with the mean of squares
    over channels as the attention. Maps (N, C, H, W); the numbers of channels may differ, the sizes may not.
    The mean is over all N·H·W places.
    """
    _same_shape(student_map, teacher_map, channels=False)
    return _normalised_difference(attention_map(student_map), attention_map(teacher_map.detach()))


def ofd(student_map: Tensor, teacher_map: Tensor, margin: Tensor) -> Tensor:
    """Partial L2: Σ (s - t')² · [s > t' or t' > 0] with t' = max(t, margin), summed over everything.

    Heo et al. 2019, "A Comprehensive Overhaul of Feature Distillation", equations 1 to 3. Both maps (N, C, H,
    W), before their ReLU; margin (C,), from `ofd_margin`. Where the teacher is silent (t' <= 0), a
    student below the target adds nothing, because ReLU hides the difference. The sum is not divided, not even
    by the batch.
    """
    _same_shape(student_map, teacher_map)
    if margin.shape != student_map.shape[1:2]:
        raise DistillError(
            f"the margin is {tuple(margin.shape)}; give one number for each of {student_map.shape[1]} channels"
        )
    student = _widen(student_map)
    target = torch.maximum(_widen(teacher_map.detach()), margin.detach().to(student.dtype).view(1, -1, 1, 1))
    counts = (student > target) | (target > 0)
    return torch.where(counts, student - target, 0.0).square().sum()


@torch.no_grad()
def ofd_margin(norm: nn.BatchNorm2d) -> Tensor:
    """(C,): mean of the negative half of a BatchNorm's output, assumed normal with mean μ (its bias) and std
    s.

    `margin = μ - s · φ(μ/s) / Φ(-μ/s)`, with `s = |weight|`, φ and Φ the normal density and distribution; -3 s
    for channels that are hardly ever negative, Φ(-μ/s) <= 0.001. Heo et al. 2019, section 3.2.

    A channel whose weight is 0 always gives μ: its margin is min(μ, 0), the limit of the formula. A norm
    without weights (affine=False) has s = 1, μ = 0. Computed in float64, returned in the norm's own
    precision.
    """
    weight = torch.ones(norm.num_features) if norm.weight is None else norm.weight
    std = weight.cpu().double().abs()  # not every GPU has float64
    mean = torch.zeros_like(std) if norm.bias is None else norm.bias.cpu().double()
    constant = std == 0
    ratio = mean / std  # NaN for 0 / 0, replaced at the end
    density = torch.exp(-ratio.square() / 2) / math.sqrt(2 * math.pi)
    below_zero = torch.special.ndtr(-ratio)
    rarely = below_zero <= 0.001
    # Where the -3 s branch is taken the quotient may be 0 / 0: give it a harmless divisor.
    margin = torch.where(rarely, -3 * std, mean - std * density / below_zero.masked_fill(rarely, 1.0))
    return torch.where(constant, mean.clamp(max=0), margin).to(weight)


def sakd(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """mean((L2n(g'_s) - L2n(g'_t))²) with g' the self-attended map of `self_attention_map`, flattened.

    The method under study, "Proposed" in its tables. Both maps (N, C, H, W), before their ReLU; the numbers
    of channels may differ, the sizes may not. The mean is over all places of g', N·H·W where the maps are
    square.
    """
    _same_shape(student_map, teacher_map, channels=False)  # now: a resize to squares could hide the mistake
    return _normalised_difference(self_attention_map(student_map), self_attention_map(teacher_map.detach()))


def mse(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """mean((s - t)²) over all N·C·H·W logits: Ba and Caruana 2014, "Do Deep Nets Really Need to be Deep?".

    Compared with AberHu/Knowledge-Distillation-Zoo at e8e298d.
    """
    _same_shape(student_logits, teacher_logits)
    return (_widen(student_logits) - _widen(teacher_logits.detach())).square().mean()


def fitnet(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """mean((s - t)²) over all N·C·H·W: Romero et al. 2015, "FitNets: Hints for Thin Deep Nets", equation 3.

    Compared with winycg/CIRKD at 587b742.
    """
    return mse(student_map, teacher_map)


def nfd(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """mean((ŝ - t̂)²), each channel of an image brought to mean 0 and variance 1 over its places.

    Liu, Yang and Chen 2022, "Normalized Feature Distillation for Semantic Segmentation", arXiv 2207.05256: the
    student does not imitate the size of the teacher's response. Both maps (N, C, H, W). A constant channel counts as 0.
    Its own code is not public; compared, for one image and but for a factor, with PKD in open-mmlab/mmrazor at 70f03da,
    which standardises over the batch.
    """
    _same_shape(student_map, teacher_map)
    return mse(_standardised(_widen(student_map)), _standardised(_widen(teacher_map.detach())))


def skd(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Mean squared difference of the cosines between every two places, after max-pooling by 2.

    Liu et al. 2019, "Structured Knowledge Distillation for Semantic Segmentation", section 3.2, pair-wise. Maps (N, C,
    H, W); the numbers of channels may differ, the sizes may not. The mean is over the pairs of an image. Compared with
    winycg/CIRKD at 6dd5165. In the authors' code, irfanICMLL/structure_knowledge_distillation at 3914ec7, the pooling
    is by half of the map's size, and no gradient passes through the lengths by which the cosines are divided.
    """
    _same_shape(student_map, teacher_map, channels=False)
    student, teacher = (_directions(_pooled(_widen(m))) for m in (student_map, teacher_map.detach()))
    return (_product(student.mT, student) - _product(teacher.mT, teacher)).square().mean()


def ifvd(student_map: Tensor, teacher_map: Tensor, labels: Tensor) -> Tensor:
    """Mean squared difference of cos(place, mean of its class), the mean being over the places of an image.

    Wang et al. 2020, "Intra-class Feature Variation Distillation for Semantic Segmentation", equations 1 to 3. Maps (N,
    C, H, W), whose channels may differ; labels (N, H', W'), brought to the maps' size by nearest neighbour. Void places
    count as equal: they add nothing to the sum, and count among the N·H·W that divide it, as in the published code.
    Compared with YukangWang/IFVD at 950a7a5.
    """
    _same_shape(student_map, teacher_map, channels=False)
    if labels.dim() != 3 or len(labels) != len(student_map):
        raise DistillError(
            f"the labels are {tuple(labels.shape)} and the maps {tuple(student_map.shape)}; give labels (N, H', W') "
            f"of the same N images"
        )
    size = student_map.shape[2:]
    small = F.interpolate(labels[:, None].float(), size=size, mode="nearest")[:, 0].long().flatten(1)
    void = small == IGNORE_INDEX
    student, teacher = (_cosine_to_class(_widen(m), small, void) for m in (student_map, teacher_map.detach()))
    return (student - teacher).square().mean()


def cwd(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    """T² / (N C) · Σ KL(softmax(t / T) ‖ softmax(s / T)), the softmax of each channel over its places.

    Shu et al. 2021, "Channel-wise Knowledge Distillation for Dense Prediction", equations 4 and 5. Logits or maps, (N,
    C, H, W). Compared with irfanICMLL/TorchDistiller at c2caaca.
    """
    _same_shape(student, teacher)
    s, t = (F.log_softmax(_widen(x).flatten(2) / temperature, dim=2) for x in (student, teacher.detach()))
    return F.kl_div(s, t, reduction="sum", log_target=True) * (temperature**2 / (s.shape[0] * s.shape[1]))


def dist(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """(1 - mean Pearson r over classes, pixel by pixel) + (1 - mean r over all pixels, class by class).

    Huang et al. 2022, "Knowledge Distillation from A Stronger Teacher", equations 8 to 10: correlations of
    probabilities, softmax(x / T). Logits (N, C, H, W); a class's correlation is over the pixels of the whole batch.
    Compared with hunto/DIST_KD at a0e5071.
    """
    _same_shape(student_logits, teacher_logits)
    s, t = (
        F.softmax(_pixels(_widen(x)).flatten(0, -2) / temperature, dim=1)
        for x in (student_logits, teacher_logits.detach())
    )
    return 2 - _pearson(s, t).mean() - _pearson(s.T, t.T).mean()


def icsd(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Mean squared difference of the matrices of KL(p_i ‖ p_j) between classes, each row scaled to length 1.

    Mansourian, Ahmadi and Kasaei 2023, "AICSD: Adaptive Inter-Class Similarity Distillation for Semantic Segmentation".
    p_i is the softmax of class i's logits over the places of an image; logits (N, C, H, W), mean over N·C². Published
    code (RozhanAhmadi/Knowledge-Distillation at 493ee4b) omits the logarithm of p_j, mirrors half of the matrix and
    averages it over the batch; a copy takes each softmax over a column of places. The adaptive weight is left to
    `warmup` and `decay`.
    """
    _same_shape(student_logits, teacher_logits)
    student, teacher = (_class_divergences(_widen(x)) for x in (student_logits, teacher_logits.detach()))
    return (student - teacher).square().mean()


def cirkd(student_map: Tensor, teacher_map: Tensor, temperature: float = 0.1) -> Tensor:
    """Mean over pairs of images and over places of KL(softmax(T / τ) ‖ softmax(S / τ)) of rows of cosines.

    Yang et al. 2022, "Cross-Image Relational Knowledge Distillation for Semantic Segmentation", equations 4 and 5: S
    (HW, HW) has the cosines of every place of one image to every place of another, the same image among them. Maps (N,
    C, H, W), whose channels may differ. The memory queues of pixels and regions of earlier batches are left out.
    Compared with winycg/CIRKD at 05a2753.
    """
    _same_shape(student_map, teacher_map, channels=False)
    student, teacher = (_directions(_widen(m).flatten(2)) for m in (student_map, teacher_map.detach()))
    total = student.new_zeros(())
    for s, t in zip(student, teacher, strict=True):  # one image and all others
        rows = [F.log_softmax(_product(a.T, b) / temperature, dim=2) for a, b in ((s, student), (t, teacher))]
        total = total + F.kl_div(rows[0], rows[1], reduction="sum", log_target=True)
    return total / (len(student) ** 2 * student.shape[2])


def attnfd(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Mean over images of ‖ŝ - t̂‖², both maps first refined by attention, then scaled to length 1.

    Mansourian, Jalali, Ahmadi and Kasaei 2024, "Attention-guided Feature Distillation for Semantic Segmentation": the
    teacher's map comes from `refined`, the student's from a module that learns (`terms.AttnFD`). (N, C, H, W). Compared
    with AmirMansurian/AttnFD at b9ee23c, which scales a batch by its length as a whole: its number is about N times
    smaller.
    """
    _same_shape(student_map, teacher_map)
    difference = _directions(_widen(student_map).flatten(1)) - _directions(_widen(teacher_map.detach()).flatten(1))
    return difference.square().sum(dim=1).mean()


def refined(feature_map: Tensor) -> Tensor:
    """A map times its channel attention, then times its spatial attention, neither of which has weights.

    Woo et al. 2018, "CBAM", with the sigmoid of average plus maximum in place of what would be learnt. (N, C, H, W).
    """
    x = _widen(feature_map)
    x = x * (x.mean(dim=(2, 3), keepdim=True) + x.amax(dim=(2, 3), keepdim=True)).sigmoid()
    return x * (x.mean(dim=1, keepdim=True) + x.amax(dim=1, keepdim=True)).sigmoid()


# ----------------------------------------------------------------------------------- what they have in common


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
    rows = _product(g, g.mT)
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
    """Mean squared difference of two (N, H, W) maps, each scaled to Euclidean length 1 per image."""
    difference = F.normalize(student.flatten(1), dim=1) - F.normalize(teacher.flatten(1), dim=1)
    return difference.square().mean()


def _standardised(x: Tensor) -> Tensor:
    """Each channel (N, C, H, W) to mean 0 and variance 1 over its places."""
    variance, mean = torch.var_mean(x, dim=(2, 3), correction=0, keepdim=True)
    return (x - mean) * (variance + 1e-5).rsqrt()


def _directions(x: Tensor) -> Tensor:
    """Vectors along dimension 1, scaled to length 1; those shorter than `_SHORT` stay short."""
    return F.normalize(x, dim=1, eps=_SHORT)


def _pooled(x: Tensor) -> Tensor:
    """(N, C, H, W) to (N, C, places) by the maxima of 2 x 2 places."""
    return F.max_pool2d(x, 2, ceil_mode=True).flatten(2)


def _cosine_to_class(x: Tensor, labels: Tensor, void: Tensor) -> Tensor:
    """(N, places): the cosine of each place of (N, C, H, W) to the mean of its class in the image, 1 where void."""
    x = x.flatten(2)
    member = F.one_hot(labels.masked_fill(void, 0)).to(x.dtype) * ~void[..., None]  # (N, places, classes)
    means = _product(x, member) / member.sum(dim=1, keepdim=True).clamp(min=1)  # (N, C, classes)
    cosine = F.cosine_similarity(x, _product(means, member.mT), dim=1, eps=_SHORT)
    return cosine.masked_fill(void, 1.0)


def _pearson(a: Tensor, b: Tensor) -> Tensor:
    """The correlation of each row of a with that of b; near 0 where one of them is constant."""
    return F.cosine_similarity(a - a.mean(dim=1, keepdim=True), b - b.mean(dim=1, keepdim=True), dim=1, eps=_SHORT)


def _class_divergences(logits: Tensor) -> Tensor:
    """(N, C, C): KL(p_i ‖ p_j) of the spatial distributions of classes i and j, each row of length 1."""
    log_p = F.log_softmax(logits.flatten(2), dim=2)
    # Only differences of log_p count; without what all classes have in common they are not lost to rounding.
    p, rest = log_p.exp(), log_p - log_p.mean(dim=1, keepdim=True)
    divergences = (p * rest).sum(dim=2, keepdim=True) - _product(p, rest.mT)
    return F.normalize(divergences, dim=2, eps=1e-4)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b, which autocast would compute in half precision: sums of fourth powers leave its range."""
    with torch.autocast(a.device.type, enabled=False):
        return a @ b


def _pixels(logits: Tensor) -> Tensor:
    """(N, C, H, W) to (N, H, W, C): in channels_last memory that is how they lie, and softmax need not copy them."""
    return logits.movedim(1, -1)


def _few_classes(logits: Tensor) -> bool:
    return logits.device.type == "cpu" and logits.shape[1] < _AT_ONCE


def _log_probabilities(logits: Tensor, temperature: float) -> Tensor:
    """Of the classes at a temperature, (N, C, H, W) or (N, H, W, C): a sum over all of them is the same."""
    softened = _widen(logits) / temperature
    return F.log_softmax(softened, dim=1) if _few_classes(logits) else F.log_softmax(_pixels(softened), dim=-1)


def _widen(tensor: Tensor) -> Tensor:
    """float16 and bfloat16 to float32; everything else as it is."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _same_shape(student: Tensor, teacher: Tensor, channels: bool = True) -> None:
    """Broadcasting would turn a wrong size into a wrong number, and one image for a batch be one too: refuse both.

    Without `channels` the numbers of channels may differ.
    """
    shapes = [tuple(tensor.shape) for tensor in (student, teacher)]
    if any(len(shape) != 4 for shape in shapes):
        raise DistillError(
            f"The student's tensor is {shapes[0]} and the teacher's {shapes[1]}; give both as (N, C, H, W)."
        )
    if shapes[0] != shapes[1] and (channels or student[:, 0].shape != teacher[:, 0].shape):
        raise DistillError(
            f"The student's tensor is {shapes[0]} and the teacher's {shapes[1]}; resize the student's, or "
            "pass it through a connector, so that both agree."
        )
