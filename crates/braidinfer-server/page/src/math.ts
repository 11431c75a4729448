// LaTeX as MathML; loaded when the first formula is shown.

import temml from "temml";

/** What Temml builds before it becomes elements. */
interface Node {
  type?: string;
  text?: string;
  attributes?: Record<string, string>;
  style?: Record<string, string>;
  classes?: string[];
  children?: Node[];
}

const NAMESPACE = "http://www.w3.org/1998/Math/MathML";
/** Bounds on what a hostile formula can cost. */
const LIMITS = { maxExpand: 200, maxSize: [20, 20] as [number, number] };

export function formula(tex: string, isDisplay: boolean): globalThis.Node {
  return elementOf(temml.__renderToMathMLTree(tex, { displayMode: isDisplay, throwOnError: true, trust: false, ...LIMITS }) as Node);
}

/** Temml's own way would write style attributes, which the page's policy forbids. */
function elementOf(node: Node): globalThis.Node {
  if (node.text !== undefined) return document.createTextNode(node.text);
  const children = (node.children ?? []).map(elementOf);
  if (node.children && node.type === undefined && !node.classes?.length) {
    const fragment = document.createDocumentFragment();
    fragment.append(...children);
    return fragment;
  }
  const element = node.type === undefined ? document.createElement("span") : (document.createElementNS(NAMESPACE, node.type) as MathMLElement);
  for (const [name, value] of Object.entries(node.attributes ?? {})) {
    if (name === "style") element.style.cssText = value;
    else if (!/^(on|href|src|xlink)/i.test(name)) element.setAttribute(name, value);
  }
  for (const [name, value] of Object.entries(node.style ?? {})) element.style.setProperty(name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`), value);
  if (node.classes?.length) element.setAttribute("class", node.classes.filter(Boolean).join(" "));
  element.append(...children);
  return element;
}
