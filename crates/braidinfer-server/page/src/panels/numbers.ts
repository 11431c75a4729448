// Numbers in as few characters as say enough.

/** JSON has no word for what is not a number but `null`. */
export function number(value: number | null): string {
  if (value === null) return "not a number";
  const size = Math.abs(value);
  if (size > 0 && (size < 0.01 || size >= 1e5)) return value.toExponential(1);
  return value.toFixed(size === 0 ? 0 : size < 10 ? 2 : 1);
}

export function whole(value: number): string {
  return Math.round(value).toLocaleString("en");
}

export function rate(value: number): string {
  return value < 100 ? value.toFixed(1) : whole(value);
}

export function percent(share: number): string {
  return `${(100 * share).toFixed(1)}\u00a0%`;
}

export function seconds(value: number): string {
  return value < 1 ? `${Math.round(1000 * value)} ms` : `${value.toFixed(2)} s`;
}

/** A size in bytes. */
export function size(bytes: number): string {
  return bytes < 1e9 ? `${Math.round(bytes / 1e6)} MB` : `${(bytes / 1e9).toFixed(1)} GB`;
}
