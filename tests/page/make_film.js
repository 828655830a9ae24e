// Joins chunks into a film: `node make_film.js FOLDER`, which holds init.mp4, chunks.json (headers) and 0.m4s, 1.m4s, ...
import { readFileSync, writeFileSync } from "node:fs";

import { Film } from "../../src/shotstream/server/static/film.js";

const folder = process.argv[2];
const read = (name) => Uint8Array.from(readFileSync(`${folder}/${name}`));
const film = new Film(read("init.mp4"), 16);
JSON.parse(readFileSync(`${folder}/chunks.json`, "utf8")).forEach((header, index) => film.add(header, read(`${index}.m4s`)));
writeFileSync(`${folder}/film.mp4`, new Uint8Array(await film.blob().arrayBuffer()));
