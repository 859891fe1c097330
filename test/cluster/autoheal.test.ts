import { describe, expect, test } from "vitest";
import { planHealing } from "../../cluster/autoheal.ts";

/** "a:ab b:ab c:c": whom each core sees. */
function plan(views: string, byAge: string) {
  const seen = new Map(
    views.split(" ").map((view) => {
      const [core = "", others = ""] = view.split(":");
      return [core, others.split("")] as const;
    }),
  );
  const healing = planHealing(seen, byAge.split(""));
  return healing && `${healing.coordinator} restarts ${healing.minority.join("")}`;
}

describe("[G8] after a partition", () => {
  test("nothing is to be done when all see the same", () => {
    expect(plan("a:abc b:abc c:abc", "abc")).toBeUndefined();
    expect(plan("a:a", "a")).toBeUndefined();
  });

  test("the largest side wins, whoever the leader is, and its oldest core restarts the others, the oldest first", () => {
    expect(plan("a:ab b:ab c:c", "abc")).toBe("a restarts c");
    expect(plan("a:a b:bc c:bc", "abc")).toBe("b restarts a");
    expect(plan("a:ae b:bcd c:bcd d:bcd e:ae", "edcba")).toBe("d restarts ea");
  });

  test("of equal sides the leader's wins", () => {
    expect(plan("a:ab b:ab c:cd d:cd", "cabd")).toBe("c restarts ab");
    expect(plan("a:ab b:ab c:cd d:cd", "dbac")).toBe("d restarts ba");
  });

  test("two that see themselves alone are healed, and so are three", () => {
    expect(plan("a:a b:b", "ba")).toBe("b restarts a");
    expect(plan("a:a b:b c:c", "cab")).toBe("c restarts ab");
  });

  test("a core between two that do not see each other is a side of its own", () => {
    expect(plan("a:ab b:abc c:bc", "bac")).toBe("b restarts ac");
  });

  test("a core sees itself, and nobody who is no core any more", () => {
    expect(plan("a:bx b:a", "ab")).toBeUndefined();
    // One that says nothing sees nobody.
    expect(plan("a:ab b:ab", "abc")).toBe("a restarts c");
  });
});
