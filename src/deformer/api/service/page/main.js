import { ask, say } from "./service.js";

try {
  const model = await ask("model");
  document.getElementById("about").textContent =
    `${model.name}: ${model.features.length} features, ${model.parameters.toLocaleString("en")} parameters`;
  const view = await import(model.image_shape ? "./image.js" : "./table.js");
  view.start(model);
} catch (error) {
  say(error.message, true);
}
