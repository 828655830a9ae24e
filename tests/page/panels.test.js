import assert from "node:assert/strict";
import { test } from "node:test";

import { MAX_STORY_FILE, Panels } from "../../src/shotstream/server/static/panels.js";

test("a story file is given to the server up to the size that it takes", async (context) => {
  const asked = context.mock.method(globalThis, "fetch", async () => Response.json({ title: "a fox", shots: [], seconds: 0 }));
  const said = [];
  const panels = {
    page: { state: () => ({ story: "main", takes: [], status: { state: "idle" } }), tell: () => {} },
    library: { cards: [], dialog: { close: () => {} }, say: (words) => said.push(words) },
  };
  const file = (size) => ({ size, name: "fox.yaml", text: async () => "" });
  assert.equal(MAX_STORY_FILE, Number(process.env.MAX_STORY ?? MAX_STORY_FILE), "as in security.py");
  await Panels.prototype.play.call(panels, file(MAX_STORY_FILE));
  assert.deepEqual([asked.mock.callCount(), said], [1, []]);
  await Panels.prototype.play.call(panels, file(MAX_STORY_FILE + 1));
  assert.deepEqual([asked.mock.callCount(), said], [1, ["This story file is larger than 8 MB, and the server takes no larger ones."]]);
});
