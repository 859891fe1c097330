/**
 * A 32-bit hash of a text: FNV-1a over its UTF-16 code units, then the finalizer of MurmurHash3, which
 * FNV needs for texts that differ in their last character only ("node-1", "node-2").
 *
 * Stable for ever: a client finds its node again by it, and every core of a cluster must draw the same
 * member. Not for secrets: collisions are easily made.
 */
export function hash32(text: string): number {
  let hash = 0x811c9dc5;
  for (let i = 0; i < text.length; i++) hash = Math.imul(hash ^ text.charCodeAt(i), 0x01000193);
  hash = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b);
  hash = Math.imul(hash ^ (hash >>> 13), 0xc2b2ae35);
  return (hash ^ (hash >>> 16)) >>> 0;
}
