import packageJson from "../package.json" with { type: "json" };

/** Of the broker, as package.json has it. */
export const version: string = packageJson.version;
