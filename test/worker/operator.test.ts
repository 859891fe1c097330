import { describe, expect, test } from "vitest";
import { allowsNodeChoice, isOperator } from "../../worker/operator.ts";

const token = "t0ken of an operator";

function asks(authorization: string | undefined): Request {
  return new Request("http://x", authorization === undefined ? {} : { headers: { Authorization: authorization } });
}

function env(bindings: Record<string, string> = {}): Env {
  return bindings as unknown as Env;
}

describe("[G9] an operator", () => {
  test.each([`Bearer ${token}`, `bearer ${token}`, `BEARER   ${token}`])("has the token: %s", (authorization) => {
    expect(isOperator(asks(authorization), env({ TRELLIS_API_TOKEN: token }))).toBe(true);
  });

  test.each([undefined, "", "Bearer", `Bearer ${token}2`, `Bearer ${token.slice(1)}`, `Basic ${token}`, token])(
    "does not come with %j",
    (authorization) => {
      expect(isOperator(asks(authorization), env({ TRELLIS_API_TOKEN: token }))).toBe(false);
    },
  );

  test.each([{}, { TRELLIS_API_TOKEN: "" }])("is nobody where there is no token: %j", (bindings) => {
    for (const given of [undefined, "Bearer", "Bearer ", "Bearer undefined"])
      expect(isOperator(asks(given), env(bindings as Record<string, string>))).toBe(false);
  });

  test("may choose a node, and on loopback anyone", () => {
    expect(allowsNodeChoice(asks(`Bearer ${token}`), env({ TRELLIS_API_TOKEN: token }))).toBe(true);
    expect(allowsNodeChoice(asks(undefined), env({ TRELLIS_API_TOKEN: token }))).toBe(false);
    expect(allowsNodeChoice(asks(undefined), env({ LOOPBACK: "true" }))).toBe(true);
  });
});
