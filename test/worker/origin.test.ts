import { describe, expect, test } from "vitest";
import { refuseOrigin } from "../../worker/origin.ts";

interface Upgrade {
  /** What the browser says the page is from; undefined: no browser. */
  readonly origin?: string;
  readonly url?: string;
  readonly allowed?: readonly string[];
  readonly onLoopback?: boolean;
}

function isRefused({
  origin,
  url = "https://broker.example.com/mqtt",
  allowed = [],
  onLoopback = false,
}: Upgrade): boolean {
  const request = new Request(url, origin === undefined ? {} : { headers: { Origin: origin } });
  return refuseOrigin(request, new URL(url), allowed, onLoopback) !== undefined;
}

describe("[G9] which pages may connect", () => {
  test("what is no browser sends no origin and may", () => {
    for (const onLoopback of [true, false]) expect(isRefused({ onLoopback })).toBe(false);
  });

  test.each(["https://broker.example.com", "https://broker.example.com:443"])(
    "a page of the broker's own host may: %s",
    (origin) => {
      expect(isRefused({ origin })).toBe(false);
    },
  );

  test.each([
    "https://example.com",
    "https://broker.example.com:8443",
    "https://broker.example.com.evil.example",
    "https://evil.example/broker.example.com",
    "https://evil.example",
    "http://localhost",
    "http://127.0.0.1:8083",
    "null",
    "",
    "broker.example.com",
    "file://",
  ])("any other may not: %s", (origin) => {
    expect(isRefused({ origin })).toBe(true);
  });

  test("a page of an origin that is listed may, as it is written", () => {
    const allowed = ["https://dash.example.com", "capacitor://localhost"];
    expect(isRefused({ origin: "https://dash.example.com", allowed })).toBe(false);
    expect(isRefused({ origin: "capacitor://localhost", allowed })).toBe(false);
    expect(isRefused({ origin: "https://dash.example.com:8443", allowed })).toBe(true);
    expect(isRefused({ origin: "http://dash.example.com", allowed })).toBe(true);
    expect(isRefused({ origin: "https://sub.dash.example.com", allowed })).toBe(true);
  });

  test('"*" allows all, and the refusal says what to do', () => {
    for (const origin of ["https://evil.example", "null"]) expect(isRefused({ origin, allowed: ["*"] })).toBe(false);
    const request = new Request("https://broker.example.com", { headers: { Origin: "https://a.example" } });
    expect(refuseOrigin(request, new URL(request.url), [], false)).toContain('"https://a.example"');
    expect(refuseOrigin(request, new URL(request.url), [], false)).toContain("origins");
  });
});

describe("[G9] on loopback", () => {
  const url = "http://127.0.0.1:8083/mqtt";

  test.each([
    "http://localhost:3000",
    "http://127.0.0.1",
    "http://127.0.0.1:9999",
    "http://127.8.9.10",
    "https://[::1]:8443",
  ])("pages from this machine may, of any port: %s", (origin) => {
    expect(isRefused({ origin, url, onLoopback: true })).toBe(false);
  });

  test.each([
    "https://evil.example",
    "http://localhost.evil.example",
    "http://127.0.0.1.evil.example",
    "http://evil.example/localhost",
    "http://127.evil.example",
    "http://128.0.0.1",
    "null",
  ])("others may not: %s", (origin) => {
    expect(isRefused({ origin, url, onLoopback: true })).toBe(true);
  });

  test("a name that an attacker has made to point here is not the broker's own host", () => {
    const rebound = "http://rebound.evil.example:8083";
    expect(isRefused({ origin: rebound, url: `${rebound}/mqtt`, onLoopback: true })).toBe(true);
  });
});
