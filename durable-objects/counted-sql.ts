import type { Sql } from "./schema.ts";

/** Counts the rows that statements write, index entries and deletions too: what Cloudflare bills most for. */
export function countedSql(sql: Sql, addWritten: (rows: number) => void): Sql {
  return {
    exec(query, ...bindings) {
      const cursor = sql.exec<never>(query, ...bindings);
      if (cursor.rowsWritten > 0) addWritten(cursor.rowsWritten);
      return cursor;
    },
  };
}
