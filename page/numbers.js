// What is computed from logits (C, H, W). A place is y * W + x.

export const VOID = 255;

/** The most probable class of each place. */
export function mask(logits, classes) {
  const places = logits.length / classes;
  const result = new Uint8Array(places);
  const best = logits.slice(0, places);
  for (let c = 1; c < classes; c++) {
    for (let i = 0; i < places; i++) {
      const value = logits[c * places + i];
      if (value > best[i]) {
        best[i] = value;
        result[i] = c;
      }
    }
  }
  return result;
}

/** Class probabilities of one place at a temperature. */
export function probabilities(logits, classes, place, temperature) {
  const places = logits.length / classes;
  const scaled = Array.from({ length: classes }, (_, c) => logits[c * places + place] / temperature);
  const largest = Math.max(...scaled);
  const powers = scaled.map((value) => Math.exp(value - largest));
  const sum = powers.reduce((a, b) => a + b);
  return powers.map((value) => value / sum);
}

/** Share of the places on which two masks agree; void ones do not count. */
export function agreement(found, truth) {
  let same = 0;
  let counted = 0;
  for (let i = 0; i < truth.length; i++) {
    if (truth[i] === VOID) continue;
    counted++;
    same += found[i] === truth[i];
  }
  return counted ? same / counted : 1;
}

/** The classes of a mask with their shares of its places, the largest first; void left out. */
export function shares(labels) {
  const counts = new Map();
  for (const label of labels) counts.set(label, (counts.get(label) ?? 0) + 1);
  counts.delete(VOID);
  return [...counts].map(([label, count]) => [label, count / labels.length]).sort((a, b) => b[1] - a[1]);
}
