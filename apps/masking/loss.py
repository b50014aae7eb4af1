"""What a training of the masks' network makes small."""

from __future__ import annotations

from typing import Any

_SOFT = 1.0  # pixels added to the Dice of a batch: one without the class is no division by 0


def loss(tf: Any, logits: Any, shares: Any) -> Any:
    """Cross-entropy with the shares, and 1 - soft Dice (Milletari et al. 2016) of the classes in the batch."""
    logs = tf.nn.log_softmax(logits)
    annotated = tf.reduce_sum(shares, axis=-1)
    entropy = -tf.reduce_sum(shares * logs) / tf.maximum(tf.reduce_sum(annotated), 1.0)
    found = tf.exp(logs) * annotated[..., None]
    sums = [tf.reduce_sum(part, axis=(0, 1, 2)) for part in (found * shares, found, shares)]
    dice = (2 * sums[0] + _SOFT) / (sums[1] + sums[2] + _SOFT)
    there = tf.cast(sums[2] > 0, tf.float32)
    return entropy + tf.reduce_sum((1 - dice) * there) / tf.maximum(tf.reduce_sum(there), 1.0)
