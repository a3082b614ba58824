// Where things are: from a picture, whose width and height are 1 each, to the screen and back.

export const MAX_ZOOM = 12;

// The view in which a picture of this size is seen whole, in a box of this size: pixels are `scale` as large.
export function fit(picture, box, margin = 16) {
  const room = { width: Math.max(box.width - 2 * margin, 1), height: Math.max(box.height - 2 * margin, 1) };
  const scale = Math.min(room.width / picture.width, room.height / picture.height, 4);
  return {
    scale,
    x: (box.width - picture.width * scale) / 2,
    y: (box.height - picture.height * scale) / 2,
  };
}

export function toScreen(view, picture, { x, y }) {
  return { x: view.x + x * picture.width * view.scale, y: view.y + y * picture.height * view.scale };
}

export function toPicture(view, picture, { x, y }) {
  return { x: (x - view.x) / (picture.width * view.scale), y: (y - view.y) / (picture.height * view.scale) };
}

// Zoom by a factor about a point of the screen, which stays where it is; not smaller than the whole.
export function zoom(view, whole, factor, { x, y }) {
  const scale = Math.min(Math.max(view.scale * factor, whole.scale), whole.scale * MAX_ZOOM);
  if (scale === whole.scale) return { ...whole };
  const by = scale / view.scale;
  return { scale, x: x - (x - view.x) * by, y: y - (y - view.y) * by };
}
