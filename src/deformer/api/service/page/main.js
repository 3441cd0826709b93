import { ask, say } from "./service.js";

try {
  const model = await ask("model");
  document.getElementById("about").textContent =
    `${model.name}: ${model.features.length} features, ${model.parameters.toLocaleString("en")} parameters`;
  const binary = model.image_shape && model.features.every((f) => f.values?.join() === "0,1");
  const view = await import(binary ? "./image.js" : "./table.js");
  view.start(model);
} catch (error) {
  say(error.message, true);
}
