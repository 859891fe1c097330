import { limits } from "../mqtt/limits.ts";

export interface FirstPage<T> {
  readonly items: readonly T[];
  /** There are no more behind it. */
  readonly isLast: boolean;
}

/**
 * The first of these that make a page, at least one: what clients have chosen, filters and ids, may be long.
 * @param rows at most `pageEntriesMax`, in order
 * @param text what of a row is a client's
 */
export function firstPage<T>(rows: Iterable<T>, text: (row: T) => string): FirstPage<T> {
  const items: T[] = [];
  let chars = 0;
  for (const row of rows) {
    chars += text(row).length;
    if (items.length > 0 && chars > limits.pageBytesMax) return { items, isLast: false };
    items.push(row);
  }
  return { items, isLast: items.length < limits.pageEntriesMax };
}
