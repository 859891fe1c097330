import type { Sql } from "../../durable-objects/schema.ts";

/** SQLite as it is, and the rows that are read and written through it, index entries and deletions too. */
export function countedSql(sql: Sql): { readonly sql: Sql; readonly rows: () => { read: number; written: number } } {
  const cursors: SqlStorageCursor<Record<string, SqlStorageValue>>[] = [];
  const exec = (query: string, ...bindings: SqlStorageValue[]) => {
    // A cursor over several statements counts the last one only.
    for (const statement of query.trim().split(";\n")) cursors.push(sql.exec(statement, ...bindings));
    return cursors.at(-1)!;
  };
  return {
    sql: { exec: exec as Sql["exec"] },
    rows: () => ({
      read: cursors.reduce((sum, { rowsRead }) => sum + rowsRead, 0),
      written: cursors.reduce((sum, { rowsWritten }) => sum + rowsWritten, 0),
    }),
  };
}
