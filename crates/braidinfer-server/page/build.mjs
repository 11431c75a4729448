// Builds the page: the same files, byte by byte, wherever it is done.
// node build.mjs [FOLDER]      by default into built/
// node build.mjs --tests       the tests into tests/built/

import { cp, mkdir, readFile, readdir, rm, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

import { build } from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const shared = {
  absWorkingDir: here,
  bundle: true,
  target: "es2022",
  jsx: "automatic",
  jsxImportSource: "preact",
  logLevel: "warning",
};
const released = { ...shared, minify: true, legalComments: "none", charset: "utf8", metafile: true };

/** Modules that the page imports when it needs them; files of their own, with names that stay. */
const LATE = ["code", "math"];
const importedLate = {
  name: "imported-late",
  setup: ({ onResolve }) => onResolve({ filter: new RegExp(`^\\.\\./(${LATE.join("|")})$`) }, ({ path }) => ({ path: `./${path.slice(3)}.js`, external: true })),
};

async function buildPage(folder) {
  await rm(folder, { recursive: true, force: true });
  await mkdir(folder, { recursive: true });
  const builds = [
    await build({ ...released, entryPoints: ["src/page.tsx"], outdir: folder, format: "esm", plugins: [importedLate] }),
    ...(await Promise.all(LATE.map((name) => build({ ...released, entryPoints: [`src/${name}.ts`], outdir: folder, format: "esm" })))),
    await build({ ...released, entryPoints: ["src/theme.ts", "src/style.css"], outdir: folder, format: "iife" }),
  ];
  await cp(join(here, "src/index.html"), join(folder, "index.html"));
  await writeFile(join(folder, "licenses.txt"), await licenses(builds.flatMap(({ metafile }) => Object.keys(metafile.inputs))));
}

/** Licences of all packages of which something is in the page. */
async function licenses(paths) {
  const found = paths.map((path) => /node_modules\/((?:@[^/]+\/)?[^/]+)\//.exec(path)?.[1]);
  const names = [...new Set(found.filter(Boolean))].sort();
  const texts = await Promise.all(names.map(licenseOf));
  return `The page of Braidinfer contains the following packages.\n\n${texts.join("\n\n")}`;
}

async function licenseOf(name) {
  const folder = join(here, "node_modules", name);
  const { version, license } = JSON.parse(await readFile(join(folder, "package.json"), "utf8"));
  const file = (await readdir(folder)).sort().find((each) => /^licen[cs]e/i.test(each));
  const text = (await readFile(join(folder, file), "utf8")).replaceAll("\r\n", "\n").trim();
  return `== ${name} ${version} (${license})\n\n${text}\n`;
}

async function buildTests() {
  const folder = join(here, "tests");
  const entryPoints = (await readdir(folder)).filter((name) => name.endsWith(".test.ts")).map((name) => `tests/${name}`);
  await build({ ...shared, entryPoints, outdir: join(folder, "built"), platform: "node", format: "esm", outExtension: { ".js": ".mjs" } });
}

const [target = join(here, "built")] = process.argv.slice(2);
await (target === "--tests" ? buildTests() : buildPage(target));
