// Writes the token ids that llama.cpp gives to each line of a file, a JSON string: node THIS MODEL.gguf TEXTS IDS
import fs from "node:fs";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [modelPath, texts, ids] = process.argv.slice(2);
// From the folder in which this is run, which has the package; imports are looked up beside this file.
const entry = createRequire(`${process.cwd()}/`).resolve("node-llama-cpp");
const { getLlama } = await import(pathToFileURL(entry));
const llama = await getLlama({ gpu: false, build: "never", logLevel: "error" });
const model = await llama.loadModel({ modelPath, vocabOnly: true });
const lines = fs.readFileSync(texts, "utf8").trimEnd().split("\n");
fs.writeFileSync(ids, JSON.stringify(lines.map((line) => model.tokenize(JSON.parse(line), false, "trimLeadingSpace"))));
process.exit(0);
