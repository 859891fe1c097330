import { describe, expect, it } from "vitest";
import { parsePasswordHash } from "../../cluster/password-hash.ts";

describe("password hash", () => {
  it("is taken apart, with padding and without", () => {
    const parsed = {
      N: 32_768,
      r: 8,
      p: 1,
      salt: new TextEncoder().encode("saltsaltsaltsalt"),
      hash: new TextEncoder().encode("hashhashhashhash"),
    };
    expect(parsePasswordHash("$scrypt$ln=15,r=8,p=1$c2FsdHNhbHRzYWx0c2FsdA$aGFzaGhhc2hoYXNoaGFzaA")).toEqual(parsed);
    expect(parsePasswordHash("$scrypt$ln=15,r=8,p=1$c2FsdHNhbHRzYWx0c2FsdA==$aGFzaGhhc2hoYXNoaGFzaA==")).toEqual(
      parsed,
    );
  });

  it("[G6] may need 64 MiB and no more", () => {
    const rest = "$c2FsdHNhbHRzYWx0c2FsdA$aGFzaGhhc2hoYXNoaGFzaA";
    expect(parsePasswordHash(`$scrypt$ln=16,r=8,p=4${rest}`).N).toBe(65_536);
    expect(() => parsePasswordHash(`$scrypt$ln=16,r=9,p=1${rest}`)).toThrow("needs more than 67108864 bytes");
  });
});
