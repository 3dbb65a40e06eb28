// One noise level's classes at a time.

const classesLevel = byId("classes-level");

function showClasses() {
  for (const part of document.querySelectorAll("#classes .level")) part.hidden = part.dataset.level !== classesLevel.value;
}

if (classesLevel) {
  for (const title of document.querySelectorAll("#classes h3")) title.hidden = true; // the choice says it
  classesLevel.addEventListener("change", showClasses);
  showClasses();
}
