// Keeps an eye on the models of the server.

import { fetchModels, loadModel, unloadModel } from "../api/models";
import { Failure } from "../api/requests";
import { notify } from "./announcements";
import { state } from "./state";
import { changed } from "./store";

/** Between two looks while something changes, in milliseconds. */
const PERIOD = 2000;

let timer: ReturnType<typeof setTimeout> | undefined;
let isWatched = false;

/** Looks now, and again while a model is on its way, somebody looks at the list, or the server is not ready. */
export async function lookAtModels(): Promise<void> {
  clearTimeout(timer);
  let isNotReady = false;
  try {
    state.models = await fetchModels();
    state.modelsFailure = state.models.length === 0 ? "The server has no model." : null;
  } catch (error) {
    state.modelsFailure = (error as Error).message;
    isNotReady = error instanceof Failure && error.status === 503;
  }
  changed();
  if (isNotReady || isWatched || isOnItsWay()) timer = setTimeout(() => void lookAtModels(), PERIOD);
}

function isOnItsWay(): boolean {
  return state.models?.some((model) => model.state === "loading" || model.state === "unloading") ?? false;
}

/** Whether somebody looks at the list. */
export function watchModels(watches: boolean): void {
  isWatched = watches;
  if (watches) void lookAtModels();
}

export function load(name: string): Promise<void> {
  return changeState(loadModel(name));
}

export function unload(name: string): Promise<void> {
  return changeState(unloadModel(name));
}

/** The server answers when it is done: meanwhile its list says how far it is. */
async function changeState(change: Promise<void>): Promise<void> {
  const look = setTimeout(() => void lookAtModels(), 100);
  try {
    await change;
  } catch (error) {
    notify({ text: (error as Error).message, isFailure: true });
  }
  clearTimeout(look);
  await lookAtModels();
}
