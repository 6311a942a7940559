import "./style.css";
import { App, element } from "./app";
import { drawing } from "./drawing";
import { experiments } from "./experiments";
import { Model, type Sentence } from "./model";
import { sampling } from "./sampling";
import { story } from "./story";

const app = new App();
for (const part of [story, experiments, drawing, sampling]) part(app);

const upload = element<HTMLInputElement>("upload");
upload.onchange = async () => {
  const message = element("status");
  try {
    if (upload.files?.length) await app.take(upload.files[0]);
  } catch (error) {
    message.textContent = (error as Sentence).message;
  }
  upload.value = ""; // so that the same file can be chosen again
};
app.start();

// For the console and for tests: `await farmer.open("digits")`, then its methods.
declare global {
  interface Window {
    farmer: { open: typeof Model.open; app: App };
  }
}
window.farmer = { open: Model.open, app };
